"""Masks of pictures: finds them, reads them, and brings them to the resolution of latents.

White (1) is learned from fully, black (0) not at all. Conventions: OneTrainer's `name-masklabel.png` beside `name.png`, kohya's
folder of masks and its alpha_mask, the picture's own transparency.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from spinlite.config.settings import Source
from spinlite.data.pictures import ENDINGS, decode, read_bytes, read_size
from spinlite.data.records import Entry, Record, Survey
from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint_bytes

MASK = "-masklabel"
LABELS = (MASK, "-condlabel")  # OneTrainer's files beside a picture that are not pictures; the second are for inpainting
STRAY = "labels (-masklabel, -condlabel) that no picture here uses"


def is_label(path: Path) -> bool:
    """Whether this picture file says something about the picture beside it, such as its mask."""
    return path.suffix.lower() in ENDINGS and path.stem.lower().endswith(LABELS)


def masks_among(files: Sequence[Path]) -> dict[str, Path]:
    """The masks among the files of a folder, by the stem of the picture there that each belongs to."""
    stems = {path.stem for path in files if path.suffix.lower() in ENDINGS}
    masks = {path.stem[: -len(MASK)]: path for path in files if is_label(path) and path.stem.lower().endswith(MASK)}
    return {stem: path for stem, path in masks.items() if stem in stems}


def add_masks(entries: Sequence[Entry], source: Source, found: Survey) -> list[Entry]:
    """The entries with the masks that their source asks for: from its folder of masks, else the picture's own transparency.

    A mask that lies beside its picture goes first. Raises SpinliteError if the folder of masks does not exist.
    """
    if source.dataset is not None:
        entries = _without_labels(entries, found)
    if source.mask_folder is not None:
        entries = _from_folder(entries, Path(source.mask_folder), Path(str(source.folder)), found)
    return [replace(e, mask=e.path) if source.alpha_mask and not e.mask else e for e in entries]


def _without_labels(entries: Sequence[Entry], found: Survey) -> list[Entry]:
    """The rows of a data set without those that are labels of other rows' files."""
    labels = {entry.path: entry.name for entry in entries if is_label(entry.path)}
    masks = {path.with_name(path.stem[: -len(MASK)]): path for path in labels if path.stem.lower().endswith(MASK)}
    pictures = [replace(e, mask=masks.get(e.path.with_suffix(""))) for e in entries if e.path not in labels]
    used = {e.mask for e in pictures}
    for path, name in labels.items():
        if path not in used:
            found.leave_out(STRAY, name)
    return pictures


def _from_folder(entries: Sequence[Entry], folder: Path, pictures: Path, found: Survey) -> list[Entry]:
    if not folder.is_dir():
        raise SpinliteError(f"there is no folder {folder} with masks", fix="add --set data.mask_folder=FOLDER")
    masks = {_stem(path, folder): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS}
    masks |= {name.removesuffix(MASK): path for name, path in masks.items()}
    given = []
    for entry in entries:
        if entry.path.is_relative_to(folder):
            continue  # a mask that recursive = true took for a picture
        mask = entry.mask or masks.get(_stem(entry.path, pictures)) or masks.get(entry.path.stem)
        if mask is None:
            found.note(f"without a mask in {folder}: learned as a whole", entry.name)
        given.append(replace(entry, mask=mask))
    return given


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def load_mask(record: Record) -> tuple[Image.Image | None, str]:
    """(a picture's mask, 8-bit grey, in the picture's size; why there is none). Neither if the mask's file has changed.

    A mask that is the picture itself is the picture's opacity. Call it inside `silence_pillow`.
    """
    path = record.mask or record.path
    try:
        content = read_bytes(path)
        if fingerprint_bytes(content) != record.mask_key:
            return None, ""
        dark = decode(content, path, background="black")[0]
        if path == record.path:  # over white and over black a picture differs by 255 x its transparency
            light = decode(content, path, background="white")[0]
            return ImageChops.invert(ImageChops.subtract(light, dark).getchannel("G")), ""
        size, _ = read_size(record.path)
        return dark.convert("L").resize(size), ""
    except SpinliteError as error:
        return None, f"its mask: {error.problem}"


def fit_mask(mask: Image.Image, latent: Tensor, centring: tuple[float, float], mirrored: bool) -> Tensor:
    """A picture's mask, cut as the picture is cut, at the resolution of its latent (..., h, w): (1, ..., h, w) in [0, 1].

    A latent without height and width gets the mean of the mask.
    """
    height, width = latent.shape[-2:] if latent.ndim > 2 else (1, 1)
    small = ImageOps.fit(mask, (width, height), Image.Resampling.BOX, centering=centring)
    levels = (ImageOps.mirror(small) if mirrored else small).tobytes()
    shape = [*[1] * (latent.ndim - 2), height, width] if latent.ndim > 2 else [1] * latent.ndim
    return torch.frombuffer(bytearray(levels), dtype=torch.uint8).view(shape) / 255
