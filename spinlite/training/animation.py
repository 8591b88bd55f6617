"""Clips as people look at them: a strip of frames in one picture, and animated WebP files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from spinlite.families.picture import Drawn, frames_of
from spinlite.runs.disk import write_bytes
from spinlite.training.sheet import INK, PAPER

CELL, GAP = 192, 6  # px: the longer side of a clip in a grid, and what is between them
QUALITY = 85  # of a WebP


def strip(drawn: Drawn) -> Image.Image:
    """First, middle and last frame of a clip in one picture, along its shorter side; a picture as it is."""
    frames = frames_of(drawn)
    shown = [frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})]
    width, height = shown[0].size
    across, down = (1, 0) if height > width else (0, 1)
    image = Image.new("RGB", (width * (1 + across * (len(shown) - 1)), height * (1 + down * (len(shown) - 1))))
    for i, frame in enumerate(shown):
        image.paste(frame, (i * across * width, i * down * height))
    return image


def is_clip(drawn: Drawn) -> bool:
    """Whether it has several frames."""
    return len(frames_of(drawn)) > 1


def save_clip(path: Path, frames: Sequence[Image.Image], fps: float, exif: bytes = b"") -> None:
    """Write an animated WebP that plays again and again, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    options = {"exif": exif} if exif else {}
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, quality=QUALITY, **options
    )
    write_bytes(path, buffer.getvalue())


def write_animation(path: Path, rows: Mapping[str, Sequence[Drawn]], fps: float) -> None:
    """Rows of clips that play side by side, each with its label, as an animated WebP. Shorter ones stay at their last frame."""
    clips = {label: [frames_of(drawn) for drawn in row] for label, row in rows.items()}
    columns, count = max(map(len, clips.values())), max(len(frames) for row in clips.values() for frames in row)
    pen, line = ImageFont.load_default(CELL // 12), CELL // 8
    step = CELL + GAP
    frames = []
    for n in range(count):
        page = Image.new("RGB", (columns * step + GAP, len(clips) * (step + line)), PAPER)
        draw = ImageDraw.Draw(page)
        for y, (label, row) in enumerate(clips.items()):
            top = y * (step + line) + line
            draw.text((GAP, top - line // 4), label, INK, pen, anchor="ls")
            for x, clip in enumerate(row):
                shown = ImageOps.pad(clip[min(n, len(clip) - 1)], (CELL, CELL), Image.Resampling.BILINEAR, PAPER)
                page.paste(shown, (GAP + x * step, top))
        frames.append(page)
    save_clip(path, frames, fps)
