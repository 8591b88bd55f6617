"""What an evaluation leaves in its folder: `results.jsonl`, and a page with the prompts that gained and lost most."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from spinlite.data.records import printable
from spinlite.evaluate.evaluate import Evaluation, Row
from spinlite.evaluate.scorer import Column
from spinlite.evaluate.tables import FOOT, legend, published_tables, tables, title
from spinlite.runs.disk import write_bytes

SIDE = 288  # px of a picture on the page
SHOWN = 10  # prompts, of the best and of the worst
RESULTS, PAGE = "results.jsonl", "page.html"


@dataclass(frozen=True)
class Case:
    """A prompt, with the picture of the base and of a model, and by how much the model's score is higher."""

    prompt: str
    change: float
    base: str  # data URIs
    model: str


@dataclass(frozen=True)
class Gallery:
    """The best and worst prompts of a model."""

    title: str
    best: list[Case]
    worst: list[Case]


def write(found: Evaluation, folder: Path, compare: bool) -> tuple[Path, Path]:
    """Write results and page, each whole or not at all; returns their paths. `compare`: with what papers report."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line, ensure_ascii=False) for row in found.rows for line in _results(row, found, folder)]
    write_bytes(folder / RESULTS, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    write_bytes(folder / PAGE, render(found, compare).encode(errors="replace"))
    return folder / RESULTS, folder / PAGE


def render(found: Evaluation, compare: bool) -> str:
    """The page as HTML. It needs no other file and no script; everything that a user wrote is escaped."""
    settings: Any = {"autoescape": True, "finalize": _plain, "trim_blocks": True, "lstrip_blocks": True}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), **settings).get_template("page.html")
    return page.render(
        title=title(found), tables=list(tables(found)), published=list(published_tables(found)) if compare else [],
        legend=legend(found), foot=FOOT, galleries=list(_galleries(found)),
    )  # fmt: skip


def _results(row: Row, found: Evaluation, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each prompt: its pictures, and the score of each, or of all where a column looks at them together."""
    for i, record in enumerate(found.prompts.records):
        files = [files[i].relative_to(folder).as_posix() for files in row.drawn.files]
        scores = {c.name: row.scores[c.name][i].tolist() for c in found.columns if c.of != "set"}
        yield {"model": row.drawn.model, "sampler": row.drawn.sampler, "prompt": i, "text": record.caption, "files": files,
               "scores": scores}  # fmt: skip


def _galleries(found: Evaluation) -> Iterator[Gallery]:
    """For every model, by every sampler, by the first scorer that was named."""
    column = next((column for column in found.columns if column.of != "set"), None)
    if column is None:
        return
    base: Row | None = None
    for row in found.rows:
        if base is None or base.drawn.sampler != row.drawn.sampler:
            base = row
            continue
        yield _gallery(row, base, column, found)


def _gallery(row: Row, base: Row, column: Column, found: Evaluation) -> Gallery:
    gain = column.per_prompt(row.scores[column.name]) - column.per_prompt(base.scores[column.name])
    order = (gain if not column.lower else -gain).argsort(descending=True, stable=True).tolist()
    count = min(SHOWN, len(order) // 2)

    def cases(places: list[int]) -> list[Case]:
        files = [(base.drawn.files[0][i], row.drawn.files[0][i]) for i in places]
        texts = [found.prompts.records[i].caption for i in places]
        return [Case(texts[n], gain[i].item(), *map(_embedded, files[n])) for n, i in enumerate(places)]

    heading = f"{row.drawn.model} against {base.drawn.model} by {column.name} · sampler: {row.drawn.sampler}"
    return Gallery(heading, cases(order[:count]), cases(order[::-1][:count]))


def _embedded(path: Path) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((SIDE, SIDE))
        image.convert("RGB").save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    return printable(value) if type(value) is str else value
