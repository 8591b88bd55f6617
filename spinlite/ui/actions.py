"""What can be done with a run: stop, go on, add rounds, write its LoRA, draw, open its folder."""

import time
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from spinlite.errors import SpinliteError
from spinlite.runs.live import ask_to_stop
from spinlite.ui import commands
from spinlite.ui.look import Look
from spinlite.ui.parts import Text, busy, button, dialog, entered, tell

WAIT = "It would share the card with the run: stop the run first."


class Actions:
    """The buttons of a run's page."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._found = folder, Look("")
        self._row = ui.element("div").classes("line")
        self._said = ui.element("div").classes("stack")

    def show(self, found: Look) -> None:
        """The buttons that fit the run's state."""
        self._found = found
        self._row.clear()
        with self._row:
            if found.running:
                button("Stop", self._stop, main=True).set_enabled(not found.stopping)
            elif found.state == "did not start":
                button("Change it", lambda: ui.navigate.to("/new"), main=True)
            elif found.state.startswith("interrupted"):
                button("Go on", lambda: self._train([]), main=True)
            elif found.rounds:
                button("Add rounds", self._add_rounds, main=True)
            if found.rounds:
                button("Write LoRA", self._export)
                button("Draw", self._draw)
            if self._folder.exists():
                button("Open folder", self._open)

    def _stop(self) -> None:
        ask_to_stop(self._folder)

    def _train(self, words: list[str]) -> None:
        settings = self._folder / "settings.toml"
        try:
            commands.start_training([str(settings), *words], self._folder.name, self._folder.parent)
        except (SpinliteError, OSError) as error:
            tell(self._said, str(error))

    def _open(self) -> None:
        try:
            commands.open_folder(self._folder)
        except OSError:
            tell(self._said, f"this computer shows no folders by itself. It is {self._folder}")

    def _add_rounds(self) -> None:
        with dialog("Add rounds") as opened:
            more = ui.number("how many more", value=2, min=1, max=100, format="%d").props("outlined")
            Text("p", "The run goes on from its last round, with the same settings.", "dim small")

            def add() -> None:
                opened.close()
                self._train(["--rounds", str(self._found.rounds + int(more.value or 1))])

            button("Go on", add, main=True)

    def _export(self) -> None:
        with dialog("Write LoRA") as opened:
            k = ui.select(self._rounds(), value="best", label="round").props("outlined")
            layouts = {"usual": "usual: every WebUI loads it", "diffusers": "diffusers: no WebUI does"}
            layout = ui.select(layouts, value="usual", label="layout").props("outlined")
            strength = ui.number("strength to bake in", value=1.0, step=0.1).props("outlined")
            said = ui.element("div").classes("stack")

            async def write() -> None:
                words = ["--round", k.value, "--strength", f"{strength.value or 1:g}"]
                words += ["--format", layout.value] if layout.value != "usual" else []  # a base's usual layout has no one name
                await _show_run(said, "writing the file, and reading it back", "export", str(self._folder), *words)

            self._buttons(opened, "Write", write)

    def _draw(self) -> None:
        with dialog("Draw") as opened:
            prompt = ui.textarea("prompt", placeholder="a prompt a line").props("outlined autogrow")
            k = ui.select(self._rounds() | {"all": "the base and every round"}, value="best", label="round").props("outlined")
            seeds = ui.number("pictures for each prompt", value=2, min=1, max=16, format="%d").props("outlined")
            said = ui.element("div").classes("stack")

            async def draw() -> None:
                folder = self._folder / "tries" / time.strftime("page-%Y%m%d-%H%M%S")
                asked = [word for line in entered(prompt).splitlines() if line.strip() for word in ("--prompt", line.strip())]
                words = [str(self._folder), *asked, "--round", k.value, "--seeds", f"{seeds.value or 1:g}", "-o", str(folder)]
                if await _show_run(said, "drawing", "sample", *words) and not said.is_deleted:
                    with said:
                        place = f"/picture/{quote(self._folder.name, safe='')}/tries/{folder.name}/sheet.png"
                        ui.element("img").classes("sheet").props(f'src="{place}" alt="What was drawn"')

            self._buttons(opened, "Draw", draw)

    def _rounds(self) -> dict[str, str]:
        numbered = {str(k): f"round {k}" for k in range(self._found.done, 0, -1)}
        return {"best": "the best round", "last": "the last round"} | numbered

    def _buttons(self, opened: ui.dialog, text: str, act) -> None:
        if self._found.running:
            Text("p", WAIT, "dim small")
        with ui.element("div").classes("line"):
            button(text, act, main=True).set_enabled(not self._found.running)
            button("Close", opened.close)


async def _show_run(place: ui.element, doing: str, *words: str) -> bool:
    """Run a command and show what it said; returns whether all went well."""
    with busy(place, doing):
        ended = await commands.run(*words)
    if place.is_deleted:
        return False
    if ended.code:
        tell(place, ended.problem)
        return False
    with place:
        Text("div", ended.out.strip(), "log").props('tabindex=0 role=region aria-label="what the command said"')
    return True
