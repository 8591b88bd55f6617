"""What the samples look like: a strip of pictures an arm, kept beside the results, and the sheet made of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from spinlite.study.arms import ARMS, NAMED
from spinlite.study.results import BASE, REALS
from spinlite.training.sheet import write_sheet

SIDE = 64  # px
SHOWN = 8  # captions
CAPTIONS = "captions"  # where a strip says what its pictures are of
ROWS = {REALS: "real pictures", BASE: "base"} | {arm.name: NAMED[arm.name].title for arm in ARMS if arm.group == "headline"}


def keep(path: Path, captions: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """A strip of pictures, from left to right."""
    strip, info = Image.new("RGB", (SIDE * len(pictures), SIDE)), PngImagePlugin.PngInfo()
    for i, picture in enumerate(pictures):
        strip.paste(picture.resize((SIDE, SIDE)), (SIDE * i, 0))
    info.add_text(CAPTIONS, json.dumps(list(captions)))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, pnginfo=info)


def write_samples_sheet(folder: Path) -> None:
    """The strips of a folder as one sheet, `samples.png`, in the order of the arms; none where there are none."""
    rows, captions = {}, []
    for name, title in ROWS.items():
        if (path := folder / "samples" / f"{name}.png").exists():
            with Image.open(path) as strip:
                captions = json.loads(strip.info[CAPTIONS])
                rows[title] = [strip.crop((SIDE * i, 0, SIDE * (i + 1), SIDE)).convert("RGB") for i in range(len(captions))]
    if rows:
        write_sheet(folder / "samples.png", "The same captions and noise, after the last round (seed 0)", captions, rows)
