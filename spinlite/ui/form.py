"""The settings as a form. Types, ranges, choices and texts are those of the settings themselves."""

import json
from collections.abc import Callable
from typing import Any

from nicegui import ui

from spinlite.config.fields import SECTIONS, field_of
from spinlite.config.kinds import Kind
from spinlite.config.reference import Entry, entries, find
from spinlite.config.settings import Settings
from spinlite.ui.parts import Text

ELSEWHERE = {"data.folder", "model.base"}  # asked for above the form
TITLES = {
    "model": "Model and LoRA", "data": "Pictures and captions", "method": "Method", "play": "Play: how fakes are drawn",
    "draw": "Times and noise", "learn": "Learning", "judge": "Judging and guards", "memory": "Memory", "run": "Run",
    "report": "What else a run tells",
}  # fmt: skip


class Form:
    """Every setting with its value. `changed` holds what differs from the preset, as text; `on_change` is called after each."""

    def __init__(self, settings: Settings, on_change: Callable[[], None]) -> None:
        self.changed: dict[str, str] = {}
        self._on_change, self._settings = on_change, settings
        self._cells: dict[str, ui.element] = {}
        self._groups: dict[str, ui.element] = {}  # the sections, and what of them is filled with settings
        self._places: dict[str, ui.element] = {}
        self._method = settings.method["name"]
        search = ui.input("search", on_change=lambda e: self._filter(e.value or "")).props("outlined clearable debounce=200")
        search.props('hint="also by the names of other trainers: dim, cfg, repeats"')
        for section in SECTIONS:
            with ui.element("section").classes("stack") as self._groups[section]:
                Text("h2", TITLES.get(section, section))
                self._places[section] = ui.element("div").classes("form")
            self._fill(section)

    def _fill(self, section: str) -> None:
        with self._places[section]:
            for entry in self._entries():
                if entry.place.partition(".")[0] == section:
                    self._show(entry)

    def _entries(self) -> list[Entry]:
        fits = (e for e in entries() if e.method in ("", self._method) and e.place not in ELSEWHERE)
        return [entry for entry in fits if entry.takes != "tables"]

    def _show(self, entry: Entry) -> None:
        field = field_of(entry.place, self._method)
        if field is None:
            return
        kind, value, key = Kind(field), self._value(entry.place, field.default), entry.place.partition(".")[2]
        with ui.element("div").classes("stack") as self._cells[entry.place]:
            if words := self._words(kind, entry):
                made: Any = ui.select(words, value=value or "none", label=key)
            else:
                made = ui.input(key, value=value).props(f'placeholder="{"none" if kind.optional else ""}" debounce=400')
            made.props("outlined dense")
            Text("p", entry.text if words else f"{entry.text} ({entry.takes})", "note")
        before, empty = made.value, "[]" if isinstance(field.default, list) else "none" if kind.optional else ""
        made.on_value_change(lambda e: self._set(entry.place, e.value != before, str(e.value or empty)))

    def _words(self, kind: Kind, entry: Entry) -> list[str]:
        """The values to choose from; [] if anything may be typed."""
        if entry.place == "method.name":
            return entry.takes.split(", ")
        words = [*kind.choices] or (["true", "false"] if kind.type is bool else [])
        return words + ["none"] * (bool(words) and kind.optional and "none" not in words)

    def _value(self, place: str, default: Any) -> str:
        section, _, key = place.partition(".")
        tree = getattr(self._settings, section)
        if isinstance(tree, dict):
            return written(tree.get(key, default) if tree["name"] == self._method else default)
        return written(getattr(tree, key))

    def _set(self, place: str, differs: bool, text: str) -> None:
        self.changed.pop(place, None)
        if differs:
            self.changed[place] = text
        self._cells[place].classes(add="changed" if differs else None, remove=None if differs else "changed")
        if place == "method.name":
            self._method = text
            self.changed = {at: value for at, value in self.changed.items() if at == place or not at.startswith("method.")}
            for other in [at for at in self._cells if at.startswith("method.") and at != place]:
                self._cells.pop(other).delete()
            with self._places["method"]:
                for entry in self._entries():
                    if entry.place.startswith("method.") and entry.place != place:
                        self._show(entry)
        self._on_change()

    def _filter(self, words: str) -> None:
        """Show the settings in which every word occurs."""
        found = {entry.place for entry in find(words.split())}
        for place, cell in self._cells.items():
            cell.set_visibility(place in found)
        for section, group in self._groups.items():
            group.set_visibility(any(place.startswith(f"{section}.") for place in found & self._cells.keys()))


def written(value: Any) -> str:
    """A value as it is typed: "" for none, or for a list without anything."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False) if len(value) > 1 else "".join(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
