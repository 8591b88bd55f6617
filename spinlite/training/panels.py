"""The sheet of a round, which is what people look at: before and after beside their own pictures, and the way there."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from spinlite.training.sheet import CURRENT, INK, PALE, PAPER, write_png

Pictures = Sequence[Image.Image]
COLUMNS = 3  # of a panel
GAP = 8  # px between pictures


class Page:
    """A page that grows as it is drawn on, in cells of one size."""

    def __init__(self, cell: int, width: int, height: int) -> None:
        self.cell, self.image = cell, Image.new("RGB", (width, height), PAPER)
        self._pen = ImageDraw.Draw(self.image)
        self._large, self._small = ImageFont.load_default(cell // 6), ImageFont.load_default(max(10, cell // 12))

    def title(self, x: int, y: int, text: str) -> None:
        """Large, from x on, just above y."""
        self._pen.text((x, y - self.cell // 24), text, INK, self._large, anchor="ls")

    def caption(self, x: int, y: int, text: str) -> None:
        """Small, under the cell whose left is x and whose bottom is y."""
        words = textwrap.fill(text, 22, max_lines=1, placeholder=" …")
        self._pen.text((x + self.cell // 2, y + 1), words, PALE, self._small, anchor="ma")

    def picture(self, x: int, y: int, picture: Image.Image) -> None:
        """Whole, whatever its shape."""
        self.image.paste(ImageOps.pad(picture, (self.cell, self.cell), Image.Resampling.LANCZOS, PAPER), (x, y))


def write_panels(
    path: Path, title: str, captions: Sequence[str], sides: Mapping[str, Pictures], strips: Sequence[Mapping[str, Image.Image]]
) -> None:
    """A panel for each of `sides`, a picture a caption; below, a row for each of `strips`, from the first step to the last.

    The file says where in it the second panel's first picture is, for whoever wants one picture of the round. Written as PNG.
    """
    cell = max(128, min(256, max(next(iter(sides.values()))[0].size)))
    step, line = cell + GAP, cell // 6
    columns = min(COLUMNS, len(captions))
    rows = -(-len(captions) // columns)
    panel = columns * step + 2 * GAP
    top = 2 * GAP + 3 * line
    strip = step + 2 * line
    width = max(len(sides) * panel + GAP, max((len(s) * step for s in strips), default=0) + 2 * GAP)
    page = Page(cell, width, top + rows * (step + line) + len(strips) * strip + GAP)
    page.title(2 * GAP, GAP + line, title)
    for i, (label, pictures) in enumerate(sides.items()):
        page.title(2 * GAP + i * panel, top - GAP // 2, label)
        for j, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
            x, y = 2 * GAP + i * panel + j % columns * step, top + j // columns * (step + line)
            page.picture(x, y, picture)
            page.caption(x, y + cell, caption)
    for i, each in enumerate(strips):
        y = top + rows * (step + line) + i * strip + 2 * line
        for j, (label, picture) in enumerate(each.items()):
            page.picture(2 * GAP + j * step, y - line, picture)
            page.caption(2 * GAP + j * step, y - line + cell, label)
    left = 2 * GAP + panel * (len(sides) > 1)
    _write(page.image, path, (left, top, left + cell, top + cell))


def _write(image: Image.Image, path: Path, current: tuple[int, int, int, int]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(CURRENT, json.dumps(current))
    write_png(path, image, info)
