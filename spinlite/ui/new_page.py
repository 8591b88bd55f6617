"""A new run: a preset and a folder, what they come to, every setting, and the start."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import background_tasks, ui

from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.progress import describe_duration, describe_size
from spinlite.runs.names import check_name
from spinlite.ui import commands
from spinlite.ui.browse import browse
from spinlite.ui.form import Form
from spinlite.ui.parts import Text, busy, button, entered, facts, frame, tell

OWN = "a preset file of mine"
PAUSE = 0.8  # seconds without typing after which the pictures are checked


def register(runs: Path) -> None:
    """Serve the page at /new."""

    @ui.page("/new")
    async def page() -> None:
        with frame("New run", "/new"):
            NewRun(runs)


class NewRun:
    """What was chosen so far."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._form = runs, None
        self._looking: asyncio.Task[None] | None = None
        Text("h1", "New run")
        with ui.element("div").classes("form"):
            names = [OWN, *shipped_presets()]
            with ui.element("div").classes("stack"):
                self._preset = ui.select(names, value="demo", label="preset").props("outlined")
                self._file = ui.input("preset file (.toml)").props("outlined debounce=500")
                self._about = Text("p", "", "note")
            with ui.element("div").classes("stack"):
                self._folder = ui.input("folder with your pictures").props("outlined debounce=500")
                with ui.element("div").classes("line"):
                    button("Browse", lambda: browse(entered(self._folder), self._folder.set_value))
            self._base = ui.input("base model").props("outlined debounce=500")
            self._name = ui.input("name of the run").props("outlined debounce=500")
        self._data, self._plan = ui.element("div").classes("stack"), ui.element("div").classes("stack")
        with ui.element("details") as details:
            Text("summary", "Every setting")
            self._place = ui.element("div").classes("stack")
        details.on("toggle", self._open_form)
        with ui.element("div").classes("start"):
            self._command = Text("p", "", "command")
            self._problem = ui.element("div").classes("stack")
            self._start = button("Start", self._train, main=True)
        self._preset.on_value_change(self._choose_preset)
        self._file.on_value_change(self._choose_preset)
        for field in (self._folder, self._base, self._name):
            field.on_value_change(self._changed)
        ui.context.client.on_delete(self._leave)
        self._choose_preset()

    @property
    def preset(self) -> str:
        """The preset's name or file."""
        return entered(self._file) if self._preset.value == OWN else self._preset.value

    def _choose_preset(self) -> None:
        """Show what a preset brings with it."""
        self._file.set_visibility(self._preset.value == OWN)
        self._form = None
        self._place.clear()
        settings = self._load([])
        self._about.show(settings.about if settings else "")
        self._start.set_enabled(settings is not None)
        if settings:
            self._own = settings
            self._base.set_value(settings.model.base)
            self._folder.set_value(settings.data.folder or "")
            self._name.set_value(commands.free_name(self._runs, Path(self.preset).stem))
            self._changed()

    def _open_form(self) -> None:
        if self._form is None and (settings := self._load([])):
            with self._place:
                self._form = Form(settings, self._changed)

    def _load(self, overrides: list[str], folder: str | None = None) -> Settings | None:
        """The settings; None, with what is wrong, if they are none."""
        self._problem.clear()
        try:
            if not self.preset:
                return None
            return load_settings(self.preset, overrides, data__folder=folder)
        except SpinliteError as error:
            tell(self._problem, f"{error.problem}\n{error.fix}")
            return None

    def _overrides(self) -> dict[str, str]:
        base = entered(self._base)
        given = {"model.base": base} if base and base != self._own.model.base else {}
        return given | (self._form.changed if self._form else {})

    def _data_folder(self) -> str | None:
        """The folder, as a whole path, so that the run goes on from wherever it is continued."""
        text = entered(self._folder)
        if not text or text == self._own.data.folder:
            return None
        return text if text == "demo" else str(Path(text).expanduser().absolute())

    def _words(self) -> list[str]:
        """The preset and what differs from it, as commands take them."""
        return [self.preset, *(word for at, value in self._overrides().items() for word in ("--set", f"{at}={value}"))]

    def _changed(self) -> None:
        """Something was changed: check it all, and look at the pictures anew."""
        folder, name = self._data_folder(), entered(self._name)
        settings = self._load([f"{at}={value}" for at, value in self._overrides().items()], folder)
        data = ["--data", folder] if folder else []
        self._command.show(commands.typed(["train", *self._words(), *data, "--name", name]))
        fault = self._fault(name)
        if settings and fault:
            tell(self._problem, fault)
        self._start.set_enabled(settings is not None and not fault)
        self._leave()
        if settings:
            self._looking = background_tasks.create(self._look(settings, folder))

    def _fault(self, name: str) -> str:
        try:
            check_name(name)
        except SpinliteError as error:
            return f"{error.problem}\n{error.fix}"
        taken = (self._runs / name / "journal.jsonl").exists()
        return f"there is a run {name} already: choose another name, or go on with it on its page" if taken else ""

    def _leave(self) -> None:
        """Nobody waits any more for what is being looked at."""
        if self._looking:
            self._looking.cancel()

    async def _look(self, settings: Settings, folder: str | None) -> None:
        """What is in the folder, and what fits the card."""
        await asyncio.sleep(PAUSE)
        self._plan.clear()
        if not (settings.data.folder or settings.data.dataset or settings.data.sources):
            self._data.clear()
            with self._data:
                Text("p", "Choose the folder with your pictures: name.png, and its caption in name.txt.", "dim")
            return
        if await self._check(settings, folder):
            await self._make_plan(folder)

    async def _check(self, settings: Settings, folder: str | None) -> bool:
        """Show what `check` finds; returns whether training can start."""
        page = self._runs / "cache" / "ui" / f"check-{id(self)}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        source = folder or settings.data.folder
        where = [source, "--preset", self.preset] if source else [self.preset]
        words = [*where, *self._words()[1:], "--runs", str(self._runs), "--json", "--html", str(page)]
        try:
            with busy(self._data, "looking at the pictures"):
                ended = await commands.run("check", *words)
            found = page.read_text(encoding="utf-8") if page.is_file() else ""
        finally:
            page.unlink(missing_ok=True)
        if self._data.is_deleted:
            return False
        if not ended.out.startswith("{"):
            tell(self._data, ended.problem)
            return False
        with self._data:
            _show_findings(json.loads(ended.out), found)
        return ended.code == 0

    async def _make_plan(self, folder: str | None) -> None:
        with busy(self._plan, "working out what fits this card"):
            ended = await commands.run("plan", *self._words(), *(["--data", folder] if folder else []), "--json")
        if self._plan.is_deleted:
            return
        if ended.code:
            return tell(self._plan, ended.problem)
        plan = json.loads(ended.out)
        total = plan["rounds"] * sum(plan["seconds"].values())
        with self._plan:
            Text("h2", "This computer")
            facts({
                "time": f"about {describe_duration(total)}: {plan['rounds']} rounds of {plan['round']}",
                "memory": f"{describe_size(plan['peak'])} at the most, of {describe_size(plan['limit'])} ({plan['card']})",
                "disk": describe_size(sum(plan["disk"].values())),
            })  # fmt: skip

    def _train(self) -> None:
        folder, name = self._data_folder(), entered(self._name)
        data = ["--data", folder] if folder else []
        try:
            commands.start_training([*self._words(), *data], name, self._runs)
        except (SpinliteError, OSError) as error:
            return tell(self._problem, str(error))
        self._leave()
        ui.navigate.to(f"/run/{quote(name, safe='')}")


def _show_findings(found: dict[str, Any], page: str) -> None:
    """What `check` found, and its page in a frame that may do nothing but show."""
    Text("h2", "Your pictures")
    if found["problem"]:
        Text("p", f"Training would stop: {found['problem']}", "bad")
        Text("p", found["fix"] or "", "bad")
    else:
        Text("p", f"{found['learned']:,} to learn from, {found['heldout']:,} unseen, to measure by.")
    for why, names in [*found["unused"].items(), *found["noted"].items()]:
        Text("p", f"{len(names):,} {why}", "dim small")
    with ui.element("details"):
        Text("summary", "Look at them")
        framed = ui.element("iframe").classes("found").props('title="what the check found"')
        framed.props.update(sandbox="", srcdoc=page)
