"""One run, as it goes on."""

import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from nicegui import run, ui

from spinlite.report.chart import chart
from spinlite.runs.names import check_name
from spinlite.runs.votes import standing
from spinlite.ui import commands
from spinlite.ui.actions import Actions
from spinlite.ui.look import Look, follower_of, look
from spinlite.ui.parts import Text, button, facts, frame, rest
from spinlite.ui.runs_page import state
from spinlite.ui.samples import Samples

SECONDS = 1.0  # between two looks at the folder
DRAW = 3.0  # at least, between two drawings of the charts


def register(runs: Path) -> None:
    """Serve the page at /run/NAME."""

    @ui.page("/run/{name}")
    async def page(name: str) -> None:
        check_name(name)
        RunPage(runs / name)


class RunPage:
    """The elements of the page, which `look` brings up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown = Look("")
        self._drawn, self._draw_at = -1, 0.0  # the journal's version that the charts show; when they may be drawn again
        self._charts: dict[str, ui.html] = {}
        with frame(folder.name):
            with ui.element("div").classes("line"):
                Text("h1", folder.name)
                self._state = ui.element("span")
                self._rounds = Text("span", "", "dim")
            self._now = ui.element("div").classes("stack")
            self._actions = Actions(folder)
            self._failure = ui.element("div").classes("stack")
            self._about = ui.element("div").classes("stack")
            self._samples = Samples(folder)
            self._choice = ui.element("div").classes("stack")
            with ui.element("div").classes("stack") as self._figures:
                with ui.element("div").classes("line"):
                    Text("h2", "Figures, over rounds", "grow")
                    button("As a table", self._download)
                self._grid = ui.element("div").classes("charts")
            self._figures.set_visibility(False)
            with ui.element("details"):
                Text("summary", "Log")
                self._log = Text("div", "", "log").props('tabindex=0 role=log aria-label="log"')
            with ui.element("details"):
                Text("summary", "Settings")
                self._settings = Text("div", "", "log").props('tabindex=0 role=region aria-label="settings"')
        ui.timer(SECONDS, self.look)

    async def look(self) -> None:
        """Look at the folder, and show what has changed."""
        found, before = await run.io_bound(look, self.folder), self._shown
        if found is None or self._now.is_deleted:
            return
        self._shown = found
        if found.state != before.state or found.stopping != before.stopping:
            self._show_state(found)
        if found != before:
            self._show_now(found)
            best = f", the best is round {found.best}" if found.best else ""
            self._rounds.show(f"{found.done} of {found.rounds} rounds{best}" if found.rounds else "")
            self._log.show("\n".join(found.log[-300:]))
        if found.done != before.done:
            await self._samples.show(found.done)
        if (found.votes, found.done) != (before.votes, before.done):
            self._show_choice(found)
        if found.version != self._drawn and (time.monotonic() >= self._draw_at or not found.running):
            began, self._drawn = time.monotonic(), found.version
            await self._draw()
            self._draw_at = time.monotonic() + rest(time.monotonic() - began, DRAW)

    def _show_state(self, found: Look) -> None:
        self._state.clear()
        with self._state:
            state(found.state or "no such run")
        self._actions.show(found)
        self._failure.clear()
        with self._failure:
            for line in found.failure.splitlines():
                Text("p", line, "bad")
        self._about.clear()
        with self._about:
            facts(found.about)
        path = self.folder / "settings.toml"
        self._settings.show(path.read_text(encoding="utf-8") if path.is_file() else "")

    def _show_now(self, found: Look) -> None:
        self._now.clear()
        if not found.running:
            return
        with self._now, ui.element("div").classes("card"):
            Text("h2", f"{found.phase or 'starting'}{' · stopping after this step' if found.stopping else ''}")
            share = f"{100 * found.share:.0f}"
            with (
                ui.element("div")
                .classes("bar")
                .props(f'role=progressbar aria-label="phase" aria-valuemin=0 aria-valuemax=100 aria-valuenow={share}')
            ):
                ui.element("div").style(f"width: {share}%")
            for line in filter(None, found.lines):
                Text("p", line, "dim small")

    def _show_choice(self, found: Look) -> None:
        self._choice.clear()
        if not found.done:
            return
        with self._choice:
            Text("h2", "Your choice")
            for words in standing(found.votes).values():
                Text("p", words[0].upper() + words[1:])
            Text("p", "No figure knows which pictures you like. Choose between two, without knowing which is which.", "dim")
            ui.link("Choose pictures", f"/choose/{quote(self.folder.name, safe='')}")

    async def _download(self) -> None:
        """The journal as CSV, from a process of its own: a long one takes seconds."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            ended = await commands.run("report", str(self.folder), "--csv", str(path))
            if ended.code:
                ui.notify(ended.problem)
            else:
                ui.download.content(path.read_bytes(), f"{self.folder.name}.csv")

    async def _draw(self) -> None:
        curves = await run.io_bound(follower_of(self.folder).curves)
        if not curves or self._grid.is_deleted:
            return
        self._figures.set_visibility(True)
        for curve in curves:
            if curve.title not in self._charts:
                with self._grid, ui.element("section"):
                    Text("h3", curve.title)
                    Text("p", curve.meaning)
                    self._charts[curve.title] = ui.html("", sanitize=False).classes("chart")
            self._charts[curve.title].content = chart(curve.title, [(curve.points, curve.base)])
