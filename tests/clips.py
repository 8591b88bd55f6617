"""Small clips for tests: a ball that moves, and frames whose brightness says which one they are."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image, ImageDraw

from spinlite.families.family import Picture

BRIGHTER = 8  # levels that each frame is brighter than the one before


def ball(count: int, speed: int = 2, size: tuple[int, int] = (32, 32), colour: str = "orange") -> list[Image.Image]:
    """A ball that moves to the right by `speed` px a frame, over dark blue."""
    frames = []
    for i in range(count):
        image = Image.new("RGB", size, (0, 0, 60))
        x = speed * i % (size[0] - 10)
        ImageDraw.Draw(image).ellipse((x, size[1] // 3, x + 12, size[1] // 3 + 12), fill=colour)
        frames.append(image)
    return frames


def numbered(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Grey frames, each BRIGHTER than the last."""
    return [Image.new("RGB", size, (BRIGHTER * i,) * 3) for i in range(count)]


def number(frame: Image.Image) -> int:
    """Which frame of `numbered` it is."""
    grey = frame.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return round(float(grey) / BRIGHTER)  # pyright: ignore[reportArgumentType]


def noise_clips(count: int, frames: int, side: int) -> list[Picture]:
    """Square clips of noise, always the same, as a family encodes them."""
    made = torch.randint(0, 256, (count, frames, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clips = [[Image.fromarray(pixels.numpy()) for pixels in clip] for clip in made]
    return [Picture(first, first.size, (0, 0), tuple(rest)) for first, *rest in clips]


def write_video(path: Path, frames: Sequence[Image.Image], fps: int = 8, turned: int = 0, wide: int = 1) -> Path:
    """A video file; `turned` by degrees, with pixels `wide` times as wide as high."""
    codec = "libvpx-vp9" if path.suffix == ".webm" else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(wide)
        if turned:
            stream.set_display_rotation(turned)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, frames: Sequence[Image.Image], fps: float = 8) -> Path:
    """A GIF or a lossless WebP."""
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), **options)
    return path


def write_frames(path: Path, frames: Sequence[Image.Image]) -> Path:
    """A folder of frames, named 0.png to 11.png and so on."""
    path.mkdir()
    for i, frame in enumerate(frames):
        frame.save(path / f"{i}.png")
    return path


def write(path: Path, frames: Sequence[Image.Image], fps: int = 8) -> Path:
    """What the name says: a folder without an ending, an animation, or a video."""
    match path.suffix:
        case "":
            return write_frames(path, frames)
        case ".gif" | ".webp":
            return write_animation(path, frames, fps)
        case _:
            return write_video(path, frames, fps)


def captioned(path: Path, frames: Sequence[Image.Image], caption: str, fps: int = 8) -> Path:
    """A clip with a caption beside it."""
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return write(path, frames, fps)
