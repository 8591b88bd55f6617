"""The samples of each round, with a slider from the base to the last round."""

from pathlib import Path

from nicegui import run, ui

from spinlite.report.pictures import Row
from spinlite.training.cells import Kind
from spinlite.ui.parts import Text
from spinlite.ui.pictures import KINDS, address, playing, rows_of, sheet_of


class Samples:
    """A part of a run's page."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._rounds, self._at = folder, 0, 0
        self._rows: dict[Kind, list[Row]] = {}
        self._shown: list[tuple[Row, ui.element]] = []  # a prompt, and its <img>
        self._place = ui.element("div").classes("stack")

    async def show(self, rounds: int) -> None:
        """Another round is finished: show the last, unless an earlier one is looked at."""
        found = await run.io_bound(self._find, rounds)
        if self._place.is_deleted:
            return
        last = self._at == self._rounds
        self._rounds, self._at = rounds, rounds if last else min(self._at, rounds)
        self._rows = found or {}
        self._place.clear()
        if not rounds:
            return
        first = (
            0 if any(0 in row.files for rows in self._rows.values() for row in rows) else 1
        )  # a run of an older version has sheets alone
        with self._place:
            Text("h2", "Samples")
            with ui.element("div").classes("line"):
                self._label = Text("span", "", "round")
                self._slider = ui.element("input").classes("grow")
                self._slider.props(f'type=range min={first} max={rounds} aria-label="round"').set_visibility(rounds > first)
                self._slider.on("input", lambda event: self._move(int(event.args)), js_handler="(e) => emit(e.target.value)")
            self._show_cells()
            with ui.element("details").props("open" if first else ""):
                Text("summary", "The whole sheet, beside your pictures")
                self._sheet = ui.element("img").classes("sheet").props("loading=lazy")
        self._move(self._at)

    def _find(self, rounds: int) -> dict[Kind, list[Row]]:
        return {kind: rows_of(self._folder, rounds, kind) for kind in KINDS}

    def _show_cells(self) -> None:
        self._shown = []
        for kind, rows in self._rows.items():
            if not rows:
                continue
            Text("h3", KINDS[kind])
            with ui.element("div").classes("pictures"):
                for row in rows:
                    with ui.element("figure"):
                        self._shown.append((row, ui.element("img").props('alt=""')))
                        with ui.element("figcaption"):
                            Text("span", row.prompt.text)
                            if kind == "prompt":
                                Text("div", row.how)

    def _move(self, k: int) -> None:
        self._at = k
        self._slider.props(f"value={k}")  # whenever the page changes, it gets the value that is said here
        self._label.show(f"after round {k}" if k else "before round 1")
        for row, image in self._shown:
            path = row.files.get(k)
            image.set_visibility(path is not None)
            if path:
                image.props(f'src="{address(self._folder, path)}"')
        path = playing(sheet_of(self._folder, max(k, 1)))
        self._sheet.set_visibility(path.is_file())
        self._sheet.props(f'src="{address(self._folder, path)}" alt="Samples of the base and of round {max(k, 1)}"')
