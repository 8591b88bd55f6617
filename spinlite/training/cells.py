"""The pictures of a round at the model's own size, a file each, in a folder of the round: heldout-01.png, prompt-01.png, …

A file says what it shows: as A1111's parameters, for people and WebUIs, and as the prompt itself, for the report.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, PngImagePlugin

from spinlite.config.prompts import Prompt
from spinlite.training.sheet import write_png

CELL = "spinlite prompt"  # key in the PNG
Kind = Literal["heldout", "prompt"]  # of a held-out caption, or of a prompt of the user's own


@dataclass(frozen=True)
class Cell:
    """A picture on the disk."""

    path: Path
    prompt: Prompt
    parameters: str  # A1111's text


def write_cells(folder: Path, kind: Kind, drawn: Sequence[tuple[Prompt, str, Image.Image]]) -> None:
    """Write (prompt, A1111's text, picture) each; cells of this kind that were there are replaced."""
    paths = [folder / f"{kind}-{number:02}.png" for number in range(1, len(drawn) + 1)]
    for path in {*folder.glob(f"{kind}-*.png")} - {*paths}:
        path.unlink()
    for path, (prompt, text, picture) in zip(paths, drawn, strict=True):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("parameters", text)
        info.add_text(CELL, json.dumps(prompt.model_dump(exclude_none=True)))
        write_png(path, picture, info)


def read_cells(folder: Path, kind: Kind) -> list[Cell]:
    """The cells of a round, in order, without those that can't be read."""
    found = []
    for path in sorted(folder.glob(f"{kind}-*.png")):
        try:
            with Image.open(path) as image:
                text, told = image.info[CELL], image.info.get("parameters", "")
            found.append(Cell(path, Prompt.model_validate(json.loads(text)), str(told)))
        except (OSError, ValueError, SyntaxError, LookupError, TypeError):
            continue
    return found
