"""Writes pictures and clips with what they were made by, where A1111 looks for it."""

from pathlib import Path

from PIL import ExifTags, Image, PngImagePlugin

from spinlite.families.picture import Drawn, frames_of
from spinlite.training.animation import save_clip


def save_drawn(path: Path, drawn: Drawn, parameters: str, fps: float) -> None:
    """Write a picture as PATH.png, or a clip as PATH.webp, an animated WebP with so many frames a second."""
    frames = frames_of(drawn)
    if len(frames) > 1:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
        save_clip(path.with_name(f"{path.name}.webp"), frames, fps, exif.tobytes())
        return
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters)
    frames[0].save(path.with_name(f"{path.name}.png"), pnginfo=info)
