"""What was found, as one HTML file with thumbnails, problems first. Whatever a user wrote is escaped."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from spinlite.check.findings import Findings
from spinlite.check.screen import bars, facts
from spinlite.data.pictures import decode, read_bytes, silence_pillow
from spinlite.data.records import Survey, printable
from spinlite.errors import SpinliteError
from spinlite.runs.store import write_bytes

SIDE = 160  # px of a thumbnail
NAMED = 24  # pictures with the same problem that are shown
SHOWN = 60  # of the pictures that are used


def write_page(found: Findings, path: Path) -> None:
    """The page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render_page(found).encode())


def render_page(found: Findings) -> str:
    """The page. It holds its pictures and needs nothing else."""
    survey = found.survey
    paths = {name: place for place, name in survey.names.items()}
    wanted = [*found.unused.items(), *found.noted.items()]
    if found.tokens and found.tokens.over:
        wanted.append((f"with captions of which the first {found.tokens.limit} tokens are read", found.tokens.over))
    wanted.append(("of which more than a tenth is cut away", [f"{name}: {share:.0%}" for name, share in found.cut.items()]))
    wanted.append(("that are enlarged", [f"{name}: {times:.2f} times" for name, times in found.enlarged.items()]))
    groups = [(why, len(names), _cards(names, paths, survey), len(names) > NAMED) for why, names in wanted if names]
    records = list({r.path: r for r in survey.train + survey.heldout}.values())
    some = records[:: max(1, -(-len(records) // SHOWN))]
    used = [(_thumbnail(r.path), survey.names[r.path], r.caption) for r in some]
    settings: Any = {"autoescape": True, "finalize": _plain, "trim_blocks": True, "lstrip_blocks": True}
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), **settings).get_template("page.html")
    return page.render(found=found, facts=facts(found), bars=bars(found, 100), groups=groups, used=used, total=len(records))


def _cards(names: Sequence[str], paths: dict[str, Path], survey: Survey) -> list[tuple[str, list[str]]]:
    """(what is said of a file, thumbnails of it and of what it is like) of the first few."""
    cards = []
    for said in names[:NAMED]:
        name, _, other = said.removesuffix(")").partition(" (like ") if said not in paths else (said, "", "")
        places = [paths.get(name) or paths.get(said.partition(": ")[0]), paths.get(other)]
        cards.append((said, [thumb for place in places if place and (thumb := _thumbnail(place))]))
    return cards


def _thumbnail(path: Path) -> str:
    """A picture as a data URI; "" where it can't be read."""
    try:
        with silence_pillow():
            image, _ = decode(read_bytes(path), path)
    except SpinliteError:
        return ""
    image.thumbnail((SIDE, SIDE))
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
