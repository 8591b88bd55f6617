"""The sample sheet of a round: one PNG, a column for each caption, a row for each model that drew it."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from spinlite.runs.disk import write_bytes

CURRENT = "spinlite current"  # key in the PNG: the box (left, top, right, bottom) of the first picture of this round
INK, PALE, PAPER = "#1f2328", "#6e7781", "#ffffff"


def write_sheet(path: Path, title: str, captions: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write rows of pictures as a PNG. A row has a label and one picture for each caption."""
    cell = max(128, min(256, max(next(iter(rows.values()))[0].size)))
    gap, left = cell // 16, cell
    large, small = ImageFont.load_default(cell // 8), ImageFont.load_default(cell // 10)
    wrapped = [textwrap.fill(caption, 18, max_lines=2, placeholder=" …") for caption in captions]
    top = cell // 4 + gap + (2 * cell // 8) + gap
    width, height = left + len(captions) * (cell + gap) + gap, top + len(rows) * (cell + gap)
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((gap, gap), title, INK, large)
    for i, text in enumerate(wrapped):
        x = left + i * (cell + gap) + cell // 2
        draw.multiline_text((x, top - gap), text, PALE, small, anchor="md", align="center")
    for j, (label, pictures) in enumerate(rows.items()):
        y = top + j * (cell + gap)
        draw.multiline_text((gap, y + cell // 2), textwrap.fill(label, 14), INK, large, anchor="lm")
        for i, picture in enumerate(pictures):
            small = ImageOps.pad(picture, (cell, cell), Image.Resampling.LANCZOS, PAPER)  # whole, whatever its shape
            image.paste(small, (left + i * (cell + gap), y))
    write_png(path, image)


def write_png(path: Path, image: Image.Image, info: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_bytes(path, buffer.getvalue())


def read_current(path: Path) -> Image.Image | None:
    """The first picture that the round itself drew; None if the PNG does not hold its box, or can't be read."""
    try:
        with Image.open(path) as image:
            place = image.info.get(CURRENT)
            return image.crop(json.loads(place)) if place else None
    except Exception:  # whatever Pillow raises on a damaged file: a preview never stops a LoRA from being written
        return None
