"""Pictures with captions: a folder -> checked records -> encoded stores."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spinlite.config import PACKAGE, Data
from spinlite.errors import SpinliteError
from spinlite.families import Cond, Family, Picture
from spinlite.store import Store, fingerprint, fingerprint_files

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
T = TypeVar("T")
Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True)
class Record:
    """One picture with its caption; `lose` is the picture that it was preferred to, where pairs are given.

    A key is a hash of the picture's bytes.
    """

    path: Path
    caption: str
    key: str
    lose: Path | None = None
    lose_key: str = ""


@dataclass
class Survey:
    """What a folder holds, as understood: what will be used, and by name what will not and why."""

    train: list[Record] = field(default_factory=list)
    heldout: list[Record] = field(default_factory=list)
    uncaptioned: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)  # captions without a picture
    unusable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # used, but not quite as they are


def survey(settings: Data, pairs: bool = False) -> Survey:
    """Read and check every picture and caption of the folder, and set the held-out share apart.

    With `pairs` the folder holds `win/` and `lose/`, with the same file names; captions lie beside the winners.
    Raises SpinliteError where there is nothing to train on, or too much is unusable.
    """
    folder = _folder(settings, pairs)
    found = Survey()
    files = sorted(path for path in (folder / "win" if pairs else folder).iterdir() if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    captions = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    found.orphans = [captions[stem].name for stem in sorted(captions.keys() - {path.stem for path in pictures})]
    records = [r for path in pictures if (r := _record(path, captions.get(path.stem), settings, pairs, found))]
    if found.uncaptioned and settings.uncaptioned == "error":
        raise SpinliteError(
            f"{len(found.uncaptioned)} pictures in {folder} have no caption: {listing(found.uncaptioned)}",
            fix='write a .txt beside each, or set data.uncaptioned = "skip" or "name"',
        )
    if len(found.unusable) > settings.max_unusable * max(len(pictures), 1):
        raise SpinliteError(
            f"{len(found.unusable)} of {len(pictures)} files in {folder} can't be used: {listing(found.unusable)}",
            fix="mend or remove them, or raise data.max_unusable",
        )
    if len(records) < 2:
        raise SpinliteError(
            f"{folder} holds {len(pictures)} pictures, of which {len(records)} have a usable caption; 2 is the least",
            fix='put pictures with captions there (name.png + name.txt), or set data.uncaptioned = "name"',
        )
    found.train, found.heldout = split(records, settings.heldout)
    return found


def listing(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def split(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """(train, held-out) by a hash of the caption: a caption is on one side only, also when others come or go.

    Where captions hardly differ (a trigger word alone), pictures are split instead.
    """
    by_caption = len({r.caption for r in records}) > len(records) / 2

    def rank(r: Record) -> float:
        text = r.caption if by_caption else r.key
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64

    heldout = [r for r in records if rank(r) < share] or [min(records, key=rank)]
    train = [r for r in records if r not in heldout]
    return (train, heldout) if train else (heldout[1:], heldout[:1])


def open_picture(path: Path, found: Survey | None = None) -> Image.Image:
    """The first frame as upright 8-bit RGB, transparency on white. Raises SpinliteError where it can't be read."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if found is not None and getattr(image, "n_frames", 1) > 1:
                found.notes.append(f"{path.name} is animated: its first frame is used")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion to RGB would clip
                image = image.convert("I").point(lambda level: level / 257).convert("L")
            if image.mode == "F":
                raise SpinliteError(f"{path.name}: floating-point pixels", fix="save it as an 8-bit picture")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        why = "empty file" if path.stat().st_size == 0 else str(error).replace(str(path), path.name)
        raise SpinliteError(f"{path.name}: {why}", fix="replace or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpinliteError(f"{path.name}: {error}", fix="make it smaller") from None


def fit(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The middle of a picture, resized to fill `size` (width, height)."""
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    scale = max(size[0] / image.width, size[1] / image.height)
    left, top = (round((whole * scale - kept) / 2) for whole, kept in zip(image.size, size, strict=True))
    return Picture(fitted, image.size, (left, top))


class Encoded:
    """Records as the network takes them: latents and conditioning, in stores, made where they are missing."""

    def __init__(self, family: Family, records: Sequence[Record], cache: Path, batch: int, progress: Progress) -> None:
        self._pictures = Store(cache / "real" / fingerprint(family.base_hash, family.size))
        self._prompts = Store(cache / "prompt" / fingerprint(family.base_hash))
        paths = {r.key: r.path for r in records} | {r.lose_key: r.lose for r in records if r.lose}
        texts = {_prompt_key(text): text for text in ["", *(r.caption for r in records)]}
        pictures = [(key, path) for key, path in paths.items() if key not in self._pictures]
        prompts = [(key, text) for key, text in texts.items() if key not in self._prompts]
        done, total = 0, len(pictures) + len(prompts)
        for chunk in chunks(pictures, batch):
            fitted = [fit(open_picture(path), family.size) for _, path in chunk]
            self._pictures.add([key for key, _ in chunk], _finite(family.encode(fitted), [path for _, path in chunk]))
            progress(done := done + len(chunk), total)
        for chunk in chunks(prompts, batch):
            self._prompts.add([key for key, _ in chunk], family.prompt([text for _, text in chunk]))
            progress(done := done + len(chunk), total)
        family.free()

    def real(self, records: Sequence[Record]) -> Tensor:
        """Their latents, (B, ...)."""
        return self._pictures.get([r.key for r in records])["x0"]

    def lose(self, records: Sequence[Record]) -> Tensor:
        """The latents of the pictures they were preferred to, (B, ...)."""
        return self._pictures.get([r.lose_key for r in records])["x0"]

    def cond(self, records: Sequence[Record], dropped: Sequence[bool] | None = None) -> Cond:
        """Their conditioning; where `dropped`, that of the empty caption."""
        flags = dropped or [False] * len(records)
        texts = ["" if flag else r.caption for r, flag in zip(records, flags, strict=True)]
        picture = self._pictures.get([r.key for r in records])
        del picture["x0"]
        return self._prompts.get([_prompt_key(text) for text in texts]) | picture


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of at most `size` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _folder(settings: Data, pairs: bool) -> Path:
    if settings.folder is None:
        raise SpinliteError("no pictures to learn from are named", fix="add --data FOLDER (name.png + name.txt)")
    folder = PACKAGE / "demo" / "fluent" if settings.folder == "demo" else Path(settings.folder)
    for needed in (folder / "win", folder / "lose") if pairs else (folder,):
        if not needed.is_dir():
            raise SpinliteError(f"there is no folder {needed}", fix="check the path after --data")
    return folder


def _record(path: Path, text: Path | None, settings: Data, pairs: bool, found: Survey) -> Record | None:
    try:
        open_picture(path, found)
        lose = path.parent.parent / "lose" / path.name if pairs else None
        if lose:
            open_picture(lose, found)
        caption = _caption(text) if text else ""
    except SpinliteError as error:
        found.unusable.append(error.problem)
        return None
    if not caption:
        found.uncaptioned.append(path.name)
        if settings.uncaptioned != "name":
            return None
        caption = path.stem.replace("_", " ")
    return Record(path, caption, fingerprint_files([path]), lose, fingerprint_files([lose]) if lose else "")


def _caption(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise SpinliteError(f"{path.name}: the caption is not UTF-8", fix="save it again as UTF-8") from None


def _finite(encoded: dict[str, Tensor], paths: Sequence[Path]) -> dict[str, Tensor]:
    for row, path in zip(encoded["x0"], paths, strict=True):
        if not torch.isfinite(row).all():
            raise SpinliteError(
                f"{path.name} encodes to NaN: the VAE overflows", fix="set model.vae to another VAE of the same kind"
            )
    return encoded


def _prompt_key(text: str) -> str:
    return fingerprint(text)
