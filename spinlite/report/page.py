"""One or several runs as one HTML file. Everything that a user wrote is escaped, and pictures are embedded."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from spinlite.data.records import printable
from spinlite.report.chart import COLOURS, chart
from spinlite.report.pictures import columns, side_by_side
from spinlite.report.story import Story, differences, figures, read_story
from spinlite.runs.disk import write_bytes

SIDE, CELL = 1600, 320  # px, the longer side of a sheet and of a single picture on the page


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the page of these runs, whole or not at all. Raises SpinliteError if a folder is not a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render([read_story(folder) for folder in folders]).encode())


def render(stories: Sequence[Story]) -> str:
    """The page as HTML. It needs no other file and no script."""
    settings: Any = {"autoescape": True, "finalize": _plain, "trim_blocks": True, "lstrip_blocks": True}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), **settings).get_template("page.html")
    return page.render(
        stories=stories, charts=_charts(stories), differ=differences(list(stories)), colours=COLOURS,
        figures=figures(list(stories)),
        embed=_embedded, columns=columns, cell=CELL, sheet_side=SIDE,
        shared=[
            ("Your prompts, by the last round of each run", side_by_side([story.prompts for story in stories])),
            ("Unseen captions, by the last round of each run", side_by_side([story.captions for story in stories])),
        ],
    )  # fmt: skip


def _charts(stories: Sequence[Story]) -> list[tuple[str, str, str]]:
    """(title, how to read it, SVG) of each figure that any of the runs has, the runs' lines in one chart."""
    named = [{curve.title: curve for curve in story.curves} for story in stories]
    charts = []
    for curve in {title: curve for curves in reversed(named) for title, curve in curves.items()}.values():
        same = [curves.get(curve.title) for curves in named]
        charts.append((curve.title, curve.meaning, chart(curve.title, [(c.points, c.base) if c else ([], None) for c in same])))
    return charts


def _embedded(path: Path | None, side: int) -> str:
    """A picture as a data URI, its longer side at most `side` px; "" if it can't be read."""
    if path is None:
        return ""
    file = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((side, side))
            image.convert("RGB").save(file, "JPEG", quality=88)
    except (OSError, ValueError, SyntaxError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    return printable(value) if type(value) is str else value
