"""Finds pictures that look alike although their files differ: resized, compressed again, brightened, the next frame."""

from collections.abc import Sequence
from itertools import pairwise

from PIL import Image

FAR = 6  # bits of 64 that may differ: among the demo's 12,720 pairs only one is as near, and it shows nearly equal faces
TINT = 24  # levels (of 255) that the mean colours may differ by: the hash itself sees no colour
PLAIN = 16  # levels: a picture with less contrast has no structure to compare
MARK = 22  # digits of a fingerprint
NO_MARK = "-" * MARK  # in a clip's mark: of a plain frame
REACH = 512  # pictures with the same band that each one is compared with; chance alone gives 200 in 100,000 pictures


def fingerprint_look(image: Image.Image) -> str:
    """RGB picture -> 22 hex digits: 16 of its perceptual hash (DCT), 6 of its mean colour. "" for a plain picture."""
    import imagehash  # with numpy and scipy it takes 0.3 s to import: only for those who decode pictures

    if (stride := min(image.size) // 256) > 1:  # ten times faster than averaging all pixels, and as good
        image = image.resize((image.width // stride, image.height // stride), Image.Resampling.NEAREST)
    small = image.reduce(max(1, min(image.size) // 64))
    darkest, brightest = small.convert("L").getextrema()
    if float(brightest) - float(darkest) < PLAIN:  # pyright: ignore[reportArgumentType]
        return ""
    return str(imagehash.phash(small)) + small.resize((1, 1), Image.Resampling.BOX).tobytes().hex()


def find_alike_clips(marks: Sequence[str]) -> dict[int, int]:
    """As `find_alike`, for clips: their first, middle and last frames (`Look.mark`) look alike, apart from plain ones."""
    frames = [["" if (one := mark[i : i + MARK]) == NO_MARK else one for i in range(0, len(mark), MARK)] for mark in marks]
    found: dict[int, int] = {}
    for nth in range(3):
        for i, j in find_alike([each[nth] if len(each) == 3 else "" for each in frames]).items():
            if all(_is_near(a, b) for a, b in zip(frames[i], frames[j], strict=True) if a and b):
                found[i] = min(j, found.get(i, j))
    return found


def _is_near(a: str, b: str) -> bool:
    tints = zip(bytes.fromhex(a[16:]), bytes.fromhex(b[16:]), strict=True)
    return (int(a[:16], 16) ^ int(b[:16], 16)).bit_count() <= FAR and all(abs(x - y) <= TINT for x, y in tints)


def find_alike(marks: Sequence[str]) -> dict[int, int]:
    """Index of a picture -> index of the earliest picture that looks like it, for pictures with such an earlier one.

    `marks` are results of `fingerprint_look`. Hashes that differ in at most FAR bits are equal in at least one of FAR + 1
    bands of bits, so only hashes with an equal band are compared.
    """
    if not any(marks):
        return {}
    import numpy as np

    seen: dict[str, int] = {}
    same_mark = {i: seen[mark] for i, mark in enumerate(marks) if mark and seen.setdefault(mark, i) != i}
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
    return same_mark | {places[i]: places[j] for i, j in enumerate(first.tolist()) if i != j}
