"""Pictures that look alike though their files differ: scaled, compressed again, brightened a little, another frame."""

from collections.abc import Sequence
from itertools import pairwise

import imagehash
import numpy as np
from PIL import Image

FAR = 6  # of 64 bits that differ at the most: of the demo's 12,720 pairs one is as near, and it is two nearly equal faces
TINT = 24  # levels (of 255) that the mean colours differ by at the most: the hash sees no colour
PLAIN = 16  # levels within which a picture has no structure that could be compared
REACH = 512  # pictures with an equal band that each is compared with, nearest first: by chance 200 of 100,000


def fingerprint_look(image: Image.Image) -> str:
    """22 hex digits: 16 of a picture's perceptual hash (DCT), 6 of its mean colour. "" of a plain one. RGB."""
    if (every := min(image.size) // 256) > 1:  # ten times faster than to average all pixels, and as good
        image = image.resize((image.width // every, image.height // every), Image.Resampling.NEAREST)
    small = image.reduce(max(1, min(image.size) // 64))
    darkest, brightest = small.convert("L").getextrema()
    if float(brightest) - float(darkest) < PLAIN:  # pyright: ignore[reportArgumentType]
        return ""
    return str(imagehash.phash(small)) + small.resize((1, 1), Image.Resampling.BOX).tobytes().hex()


def find_alike(marks: Sequence[str]) -> dict[int, int]:
    """Place of a picture -> the first place of one that looks like it, by `likeness`; of those that have an earlier one.

    Hashes that differ in at most FAR bits are equal in one of FAR + 1 bands: only those with an equal band are compared.
    """
    seen: dict[str, int] = {}
    found = {i: seen[mark] for i, mark in enumerate(marks) if mark and seen.setdefault(mark, i) != i}
    hashes = np.array([int(mark[:16], 16) for mark in seen], dtype=np.uint64)
    tints = np.array([list(bytes.fromhex(mark[16:])) for mark in seen], dtype=np.int16).reshape(-1, 3)
    first = np.arange(len(seen))
    edges = np.linspace(0, 64, FAR + 2).astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64(2 ** int(high - low) - 1)
        order = np.lexsort((hashes, band))
        band, sorted_ = band[order], hashes[order]
        live = np.arange(len(order))
        for step in range(1, REACH):
            live = live[: np.searchsorted(live, len(order) - step)]
            live = live[band[live] == band[live + step]]
            if not len(live):
                break
            near = live[np.bitwise_count(sorted_[live] ^ sorted_[live + step]) <= FAR]
            a, b = order[near], order[near + step]
            same = np.abs(tints[a] - tints[b]).max(1) <= TINT
            np.minimum.at(first, np.maximum(a, b)[same], np.minimum(a, b)[same])
    places = list(seen.values())
    return found | {places[i]: places[j] for i, j in enumerate(first.tolist()) if i != j}
