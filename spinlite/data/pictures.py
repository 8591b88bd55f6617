"""Reads one picture safely: turned upright, converted to 8-bit sRGB, resized and cropped."""

import contextlib
import importlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose

from spinlite.data.metadata import PROFILE_BYTES, header_of, without_metadata
from spinlite.errors import SpinliteError
from spinlite.families.picture import Picture

# Only these formats: Pillow would hand PostScript to Ghostscript, for example.
FORMATS = {
    "PNG": {".png", ".apng"},
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},  # from phones: a JPEG followed by more JPEGs
    "WEBP": {".webp"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
    "AVIF": {".avif"},
    "JXL": {".jxl"},
}
ENDINGS = set().union(*FORMATS.values())
LARGEST = 2**30  # bytes; a larger file is not read
FRAMES = "with several frames; only the first is used"
METADATA = "with metadata that can't be read, ignored"
PROFILE = "with a colour profile that can't be applied, read as sRGB"
ENDING = "with the ending of another format, used all the same"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
HUGE = 2**26  # pixels; larger pictures are decoded one at a time, because each takes up to a gigabyte
TURNS = {  # EXIF's orientation -> what turns the picture upright
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # mode -> the colour space that its profile must have
Image.MAX_IMAGE_PIXELS = 2**27  # Pillow refuses twice as many: 268 megapixels, more than any phone's
PngImagePlugin.MAX_TEXT_CHUNK = PROFILE_BYTES
_ONE = threading.Lock()  # held while a HUGE picture is decoded


def read_bytes(path: Path, name: str = "") -> bytes:
    """The bytes of a picture's file. Raises SpinliteError, which calls the picture `name`, if it can't be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"above {LARGEST // 2**30} GB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(name or path.name, path, error) from None


def open_picture(
    path: Path, note: Callable[[str, str], None] | None = None, name: str = "", background: str = "white"
) -> Image.Image:
    """The first frame, upright, as 8-bit sRGB; transparent parts show `background`.

    What else was seen is reported by `note(what, name)`. Raises SpinliteError, which calls the picture `name`, if it can't be
    read.
    """
    with silence_pillow():
        image, seen = decode(read_bytes(path, name), path, name, background)
    if note:
        for what in seen:
            note(what, name or path.name)
    return image


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about files that it reads all the same.

    Enter it in the main thread, around all threads that `decode` and `read_size`: warning filters belong to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode(content: bytes, path: Path, name: str = "", background: str = "white") -> tuple[Image.Image, list[str]]:
    """(picture, what else was seen) from the bytes of the file `path`. Raises SpinliteError as `open_picture` does.

    Call it inside `silence_pillow`.
    """
    try:
        return _decode(content, path, background)
    except Exception as error:  # on a broken file a decoder may raise anything
        with contextlib.suppress(Exception):
            image, seen = _decode(without_metadata(content), path, background)
            return image, [*seen, METADATA]
        raise _unreadable(name or path.name, path, error) from None


def read_size(path: Path, name: str = "") -> tuple[tuple[int, int], list[str]]:
    """((width, height) in px after EXIF rotation, what else was seen) from a file's header alone; else like `decode`."""
    try:
        with path.open("rb") as file:
            return _read_size(header_of(file), path)
    except Exception as error:
        with contextlib.suppress(Exception):
            size, seen = _read_size(io.BytesIO(without_metadata(read_bytes(path))), path)
            return size, [*seen, METADATA]
        raise _unreadable(name or path.name, path, error) from None


def ending_of(content: bytes) -> str:
    """The file ending that fits a picture's bytes; ".bin" if it is not a format that is read here."""
    with contextlib.suppress(Exception), silence_pillow(), Image.open(io.BytesIO(content), formats=formats()) as image:
        return f".{image.format}".lower()
    return ".bin"


def resize_and_crop(image: Image.Image, size: tuple[int, int], centring: tuple[float, float] = (0.5, 0.5)) -> Picture:
    """Resize a picture to fill `size` (width, height), and crop what sticks out.

    `centring` says which part stays: 0 is left and top, 0.5 the middle, 1 right and bottom.
    """
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=centring)
    scale = max(size[0] / image.width, size[1] / image.height)
    excess = [whole * scale - kept for whole, kept in zip(image.size, size, strict=True)]
    left, top = (round(each * place) for each, place in zip(excess, centring, strict=True))
    return Picture(fitted, image.size, (left, top))


def mirror(picture: Picture) -> Picture:
    """Mirror a picture, and its crop with it."""
    (width, height), image = picture.original_size, picture.image
    whole = round(width * max(image.width / width, image.height / height))
    return Picture(ImageOps.mirror(image), (width, height), (whole - image.width - picture.crop[0], picture.crop[1]))


@cache
def formats() -> list[str]:
    """The FORMATS that Pillow can read on this computer: JPEG XL needs its plugin, and MPO comes with JPEG."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode(content: bytes, path: Path, background: str) -> tuple[Image.Image, list[str]]:
    with Image.open(io.BytesIO(content), formats=formats()) as image, _ONE if _is_huge(image) else contextlib.nullcontext():
        seen = _notable(image, path)
        return to_rgb(image, background, seen), seen


def _read_size(file: BinaryIO, path: Path) -> tuple[tuple[int, int], list[str]]:
    with Image.open(file, formats=formats()) as image:
        seen = _notable(image, path)
        turned = image.format != "TIFF" and _orientation(image, seen) in (5, 6, 7, 8)  # Pillow turns TIFFs itself
        return (image.height, image.width) if turned else image.size, seen


def _orientation(image: Image.Image, seen: list[str]) -> int:
    """The EXIF tag that says which side is up; 1: it lies as it should."""
    try:
        return Image.Image.getexif(image).get(0x112, 1)  # that of PngImageFile would decode the pixels first
    except Exception:  # Pillow's reader raises anything
        seen.append(METADATA)
        return 1


def _is_huge(image: Image.Image) -> bool:
    return image.width * image.height > HUGE


def _notable(image: Image.Image, path: Path) -> list[str]:
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    wrong_ending = path.suffix.lower() not in FORMATS.get(image.format or "", {path.suffix.lower()})
    return [FRAMES] * animated + [ENDING] * wrong_ending


def to_rgb(image: Image.Image, background: str, seen: list[str]) -> Image.Image:
    """An opened picture, upright, as 8-bit sRGB; what was worth a note is added to `seen`."""
    image.load()
    profile = image.info.get("icc_profile")
    if turn := TURNS.get(_orientation(image, seen)):
        image = image.transpose(turn)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have neither 8 nor 16 bits")
    if image.mode.startswith("I;16"):
        if image.has_transparency_data:
            raise ValueError("16-bit grey with a transparent level")  # Pillow would make the wrong level transparent
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")  # its own conversion would clip
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        image = _to_srgb(image, profile, seen)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: bytes, seen: list[str]) -> Image.Image:
    try:
        transform = _transform(profile, image.mode)
        return image if transform is None else ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        seen.append(PROFILE)
        return image


@lru_cache(64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if the profile is sRGB itself."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    about: Any = source.profile
    if about.xcolor_space != SPACES[mode]:
        raise ValueError("the profile is of another colour space")
    if "srgb" in (about.profile_description or "").lower():
        return None
    return ImageCms.buildTransform(source, SRGB, mode, "RGB")


def _unreadable(name: str, path: Path, error: Exception) -> SpinliteError:
    return SpinliteError(f"{name}: {_why(path, error)}", fix="replace or remove it")


def _why(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case UnidentifiedImageError():
            return "not a picture" if path.exists() and path.stat().st_size else "empty file"
        case Image.DecompressionBombError():
            return f"above {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
        case MemoryError():
            return "not enough memory to read it"
        case OSError() if error.strerror:
            return error.strerror
    return str(error) or type(error).__name__
