"""Writes the findings as one HTML file with thumbnails, problems first. Everything that a user wrote is escaped."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from spinlite.check.findings import Findings
from spinlite.check.screen import bars, facts
from spinlite.data.clips import strip_of
from spinlite.data.pictures import decode, read_bytes, silence_pillow
from spinlite.data.records import Survey, printable
from spinlite.errors import SpinliteError
from spinlite.runs.disk import write_bytes

SIDE = 160  # px, the longer side of a thumbnail
NAMED = 24  # how many pictures are shown per problem
SHOWN = 60  # how many of the used pictures are shown


def write_page(findings: Findings, path: Path) -> None:
    """Write the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render_page(findings).encode())


def render_page(findings: Findings) -> str:
    """The page as HTML. Its pictures are embedded, so it needs no other file."""
    survey = findings.survey
    paths = {name: place for place, name in survey.names.items()}
    problems = [*findings.unused.items(), *findings.noted.items()]
    if (tokens := findings.tokens) and tokens.over:
        problems.append((f"with a caption longer than {tokens.limit} tokens: the rest is ignored", tokens.over))
    problems.append(("that lose more than a tenth", [f"{name}: {share:.0%}" for name, share in findings.cut.items()]))
    problems.append(("that are enlarged", [f"{name}: {times:.2f} times" for name, times in findings.enlarged.items()]))
    groups = [(why, len(names), _cards(names, paths, survey), len(names) > NAMED) for why, names in problems if names]
    records = list({r.path: r for r in survey.train + survey.heldout}.values())
    some = records[:: max(1, -(-len(records) // SHOWN))]
    used = [
        (_thumbnail(r.path, survey), survey.names[r.path], findings.clips.get(survey.names[r.path]), r.caption) for r in some
    ]
    settings: Any = {"autoescape": True, "finalize": _plain, "trim_blocks": True, "lstrip_blocks": True}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), **settings).get_template("page.html")
    return page.render(
        findings=findings, facts=facts(findings), bars=bars(findings, 100), groups=groups, used=used, total=len(records),
    )  # fmt: skip


def _cards(names: Sequence[str], paths: dict[str, Path], survey: Survey) -> list[tuple[str, list[str]]]:
    """(remark, thumbnails of the file and of the picture that it resembles) of the first few files."""
    cards = []
    for remark in names[:NAMED]:
        name, _, other = remark.removesuffix(")").partition(" (like ") if remark not in paths else (remark, "", "")
        places = [paths.get(name) or paths.get(remark.partition(": ")[0]), paths.get(other)]
        cards.append((remark, [thumb for place in places if place and (thumb := _thumbnail(place, survey))]))
    return cards


def _thumbnail(path: Path, survey: Survey) -> str:
    """A thumbnail as a data URI, of a clip one of its first, middle and last frame; "" if the picture can't be read."""
    look = survey.looks.get(path)
    try:
        with silence_pillow():
            image = strip_of(path) if look and look.rate else decode(read_bytes(path), path)[0]
    except SpinliteError:
        return ""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
