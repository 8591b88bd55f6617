"""The list of runs."""

import time
from pathlib import Path
from urllib.parse import quote

from nicegui import run, ui

from spinlite.progress import describe_size
from spinlite.runs.listing import Listed, list_runs
from spinlite.ui.parts import Text, button, frame, rest
from spinlite.ui.pictures import last_sheet

SECONDS = 3.0  # at least, between two looks at the folder


def register(runs: Path) -> None:
    """Serve the page at /."""

    @ui.page("/")
    async def page() -> None:
        with frame("Runs", "/"):
            with ui.element("div").classes("line"):
                Text("h1", "Runs", "grow")
                button("New run", lambda: ui.navigate.to("/new"), main=True)
            rows = ui.element("div").classes("rows")
        shown: list[Listed] | None = None

        async def look() -> None:
            nonlocal shown
            began = time.monotonic()
            found = await run.io_bound(list_runs, runs)
            if found is not None and found != shown and not rows.is_deleted:
                shown = found
                rows.clear()
                with rows:
                    _show(runs, found)

            timer.interval = rest(time.monotonic() - began, SECONDS)

        timer = ui.timer(SECONDS, look)


def _show(runs: Path, found: list[Listed]) -> None:
    if not found:
        Text("p", f"There are no runs in {runs} yet. The demo needs no pictures of yours, no GPU and no download.", "dim")
    for each in found:
        with ui.element("a").classes("run").props(f'href="/run/{quote(each.name, safe="")}"'):
            if last_sheet(runs / each.name, each.round):
                source = f"/thumbnail/{quote(each.name, safe='')}/{each.round}"
                ui.element("img").props(f'src="{source}" alt=""')
            else:
                ui.element("span").classes("none")
            with ui.element("div"):
                with ui.element("div").classes("line"):
                    Text("b", each.name)
                    state(each.state)
                Text("div", _figures(each), "dim small")


def state(words: str) -> Text:
    """The state of a run as a mark."""
    kind = "running" if words == "running" else "" if words == "done" or words.startswith("interrupted") else "wrong"
    return Text("span", words, f"state {kind}")


def _figures(each: Listed) -> str:
    parts = [f"round {each.round} of {each.rounds}"]
    if each.judged:
        error = each.judged["policy_real"]
        against = f", {100 * (error / each.base - 1):+.1f} % against the base" if each.base else ""
        parts.append(f"error on unseen pictures {error:.4f}{against}")
    return " · ".join([*parts, describe_size(each.size)])
