"""One picture: read with care, upright, 8-bit RGB, cut to size."""

import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from spinlite.errors import SpinliteError
from spinlite.families import Picture

ENDINGS = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".jxl",
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # no more: Pillow would hand PostScript to Ghostscript


def open_picture(path: Path, note: Callable[[str, str], None] | None = None, name: str = "") -> Image.Image:
    """The first frame as upright 8-bit RGB, transparency on white.

    `note(what, name)` is told what else was seen. Raises SpinliteError, in which the picture is called `name`, where it
    can't be read.
    """
    name = name or path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Pillow then reads all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                frames = getattr(image, "n_frames", 1)
                rgb = _rgb(image)
    except Exception as error:  # a decoder raises whatever comes on a broken file
        raise SpinliteError(f"{name}: {_why(path, error)}", fix="replace or remove it") from None
    if note and frames > 1:
        note("with several frames, of which the first is used", name)
    return rgb


def fit(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The middle of a picture, resized to fill `size` (width, height)."""
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    scale = max(size[0] / image.width, size[1] / image.height)
    left, top = (round((whole * scale - kept) / 2) for whole, kept in zip(image.size, size, strict=True))
    return Picture(fitted, image.size, (left, top))


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have neither 8 nor 16 bits")
    if image.mode.startswith("I;16"):
        if image.has_transparency_data:
            raise ValueError("16-bit grey with a transparent level")  # Pillow would make another level transparent
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")  # its own conversion would clip
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _why(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case UnidentifiedImageError():
            return "not a picture" if path.stat().st_size else "empty file"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"above {(Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels"
    return str(error)
