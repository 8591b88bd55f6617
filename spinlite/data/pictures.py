"""One picture: read with care, upright, 8-bit sRGB, cut to size."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from spinlite.errors import SpinliteError
from spinlite.families.family import Picture

# No more than these: Pillow would hand PostScript to Ghostscript.
FORMATS = {
    "PNG": {".png", ".apng"},
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},  # what phones write: a JPEG, with further ones behind it
    "WEBP": {".webp"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
    "AVIF": {".avif"},
    "JXL": {".jxl"},
}
ENDINGS = set().union(*FORMATS.values())
LARGEST = 2**30  # bytes of a file that is read
FRAMES = "with several frames, of which the first is used"
PROFILE = "with a colour profile that can't be applied, read as sRGB"
ENDING = "whose ending is another format's, read all the same"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # mode -> the colour space that a profile for it is of


def read_bytes(path: Path, name: str = "") -> bytes:
    """A picture's file. Raises SpinliteError, in which it is called `name`, where it can't be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"above {LARGEST // 2**30} GB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(name or path.name, path, error) from None


def open_picture(
    path: Path, note: Callable[[str, str], None] | None = None, name: str = "", background: str = "white"
) -> Image.Image:
    """The first frame as upright 8-bit sRGB, transparency laid on `background`.

    `note(what, name)` is told what else was seen. Raises SpinliteError, in which the picture is called `name`, where it
    can't be read.
    """
    with silence_pillow():
        image, seen = decode(read_bytes(path, name), path, name, background)
    if note:
        for what in seen:
            note(what, name or path.name)
    return image


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """No word from Pillow of what it then reads all the same; half a decompression bomb is one. For the main thread, around
    all that `decode` and `peek` in whatever threads: filters of warnings are the process's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(content: bytes, path: Path, name: str = "", background: str = "white") -> tuple[Image.Image, list[str]]:
    """(picture, what else was seen) of a file's content; `path` says what it was called. Raises as `open_picture` does.

    Call it inside of `quiet`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            seen = _seen(image, path)
            return _rgb(image, background, seen), seen
    except Exception as error:  # a decoder raises whatever comes on a broken file
        raise _unreadable(name or path.name, path, error) from None


def read_size(path: Path, name: str = "") -> tuple[tuple[int, int], list[str]]:
    """(upright size in px, what else was seen) from a file's header alone. As `decode` otherwise."""
    try:
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            turned = image.format != "TIFF" and image.getexif().get(0x112, 1) in (5, 6, 7, 8)  # Pillow turns TIFFs itself
            return (image.height, image.width) if turned else image.size, _seen(image, path)
    except Exception as error:
        raise _unreadable(name or path.name, path, error) from None


def ending_of(content: bytes) -> str:
    """The ending that suits a picture's content; ".bin" where it is none that is read here."""
    with contextlib.suppress(Exception), silence_pillow(), Image.open(io.BytesIO(content), formats=_formats()) as image:
        return f".{image.format}".lower()
    return ".bin"


def resize_and_crop(image: Image.Image, size: tuple[int, int], centring: tuple[float, float] = (0.5, 0.5)) -> Picture:
    """A picture resized to fill `size` (width, height), and what is too much cut off: its middle stays, or what lies at
    `centring`, from 0 (left, top) to 1."""
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=centring)
    scale = max(size[0] / image.width, size[1] / image.height)
    over = [whole * scale - kept for whole, kept in zip(image.size, size, strict=True)]
    left, top = (round(each * place) for each, place in zip(over, centring, strict=True))
    return Picture(fitted, image.size, (left, top))


def mirror(picture: Picture) -> Picture:
    """A picture as if its original had been mirrored."""
    (width, height), image = picture.original_size, picture.image
    whole = round(width * max(image.width / width, image.height / height))
    return Picture(ImageOps.mirror(image), (width, height), (whole - image.width - picture.crop[0], picture.crop[1]))


@cache
def _formats() -> list[str]:
    """Those of FORMATS that Pillow reads here: JPEG XL needs its plugin, and MPO comes with JPEG."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _seen(image: Image.Image, path: Path) -> list[str]:
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    other = path.suffix.lower() not in FORMATS.get(image.format or "", {path.suffix.lower()})
    return [FRAMES] * animated + [ENDING] * other


def _rgb(image: Image.Image, background: str, seen: list[str]) -> Image.Image:
    image.load()
    profile = image.info.get("icc_profile")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have neither 8 nor 16 bits")
    if image.mode.startswith("I;16"):
        if image.has_transparency_data:
            raise ValueError("16-bit grey with a transparent level")  # Pillow would make another level transparent
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
    """From a profile to sRGB; None where it is sRGB itself."""
    made = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    about: Any = made.profile
    if about.xcolor_space != SPACES[mode]:
        raise ValueError("the profile is of another colour space")
    if "srgb" in (about.profile_description or "").lower():
        return None
    return ImageCms.buildTransform(made, SRGB, mode, "RGB")


def _unreadable(name: str, path: Path, error: Exception) -> SpinliteError:
    return SpinliteError(f"{name}: {_why(path, error)}", fix="replace or remove it")


def _why(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case UnidentifiedImageError():
            return "not a picture" if path.exists() and path.stat().st_size else "empty file"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"above {(Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
        case MemoryError():
            return "not enough memory to read it"
        case OSError() if error.strerror:
            return error.strerror
    return str(error) or type(error).__name__
