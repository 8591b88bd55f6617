"""The settings as people look them up: each with what it takes, its default and its text."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spinlite.config.fields import SECTIONS, fields_of
from spinlite.config.kinds import Kind
from spinlite.config.peers import MEANT, SAME
from spinlite.config.settings import METHOD, Settings
from spinlite.config.spelling import SHORT
from spinlite.config.texts import method_texts, setting_texts
from spinlite.methods.registry import METHODS

USUAL_METHOD = method_texts(inspect.getdoc(METHODS[METHOD]) or "")  # the others say "as in SPIN", or nothing


@dataclass(frozen=True)
class Entry:
    """A setting: "section.key", what it takes and its default in words, its text, its short option, and whose it is."""

    place: str
    takes: str
    default: str
    text: str
    option: str = ""
    method: str = ""  # the method that has this setting, if not all do

    @property
    def theirs(self) -> str:
        """Other trainers' words for it."""
        meant = (word for word, (place, _) in MEANT.items() if place == self.place)
        return " ".join([SAME.get(self.place, ""), *meant])


def entries() -> Iterator[Entry]:
    """Every setting, by section; those of [method] method by method."""
    options = {place: f"--{name.replace('_', '-')}" for name, place in SHORT.items()}
    for section in SECTIONS:
        if section == "method":
            yield from _method_entries()
            continue
        for key, field in fields_of(section).items():
            place = f"{section}.{key}"
            text = setting_texts().get(place, "")
            kind = Kind(field)
            default = "not set" if field.default is None and "none" in kind.choices else describe_default(field.default)
            yield Entry(place, str(kind), default, text, options.get(place, ""))


def find(words: Sequence[str]) -> list[Entry]:
    """The settings in which every word occurs: in the name, the text, or another trainer's name for it."""
    wanted = [word.lower().lstrip("-").replace("-", "_") for word in words]
    return [entry for entry in entries() if all(any(word in part for part in _parts(entry)) for word in wanted)]


def markdown() -> str:
    """All settings as a page."""
    lines = [
        "# Settings",
        "",
        "Every setting with what it takes, its default and what it does. In a preset: `key = value` below `[section]`. On the",
        "command line: `--set section.key=value`, or the short option. `spinlite settings WORDS` searches them, also by the",
        "names that they have in other trainers. This page is what `spinlite settings --markdown` writes.",
    ]
    for title, group in _grouped(entries()):
        lines += ["", f"## {title}", "", *_intro(title), "| setting | takes | default | |", "|---|---|---|---|"]
        for entry in group:
            key = entry.place.partition(".")[2]
            option = f"<br>`{entry.option}`" if entry.option else ""
            text = entry.text.replace("|", "\\|")
            lines.append(f"| `{key}`{option} | {entry.takes} | `{entry.default}` | {text} |")
    return "\n".join([*lines, ""])


def describe_default(value: Any) -> str:
    """A default as it is written in a preset."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _method_entries() -> Iterator[Entry]:
    yield Entry(
        "method.name",
        ", ".join(METHODS),
        describe_default(METHOD),
        "the loss, and who plays against whom; each has its own defaults",
    )
    for name, method in METHODS.items():
        texts = method_texts(inspect.getdoc(method) or "")
        for key, field in fields_of("method", name).items():
            if key != "name":
                text = texts.get(key, "as in SPIN") if key in USUAL_METHOD else texts.get(key, "")
                yield Entry(f"method.{key}", str(Kind(field)), describe_default(field.default), text, method=name)


def _grouped(every: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """(title of a section or of a method's part of it, its settings), in order."""
    groups: dict[str, list[Entry]] = {}
    for entry in every:
        section = entry.place.partition(".")[0]
        title = f'[method] with name = "{entry.method}"' if entry.method else f"[{section}]"
        groups.setdefault(title, []).append(entry)
    return list(groups.items())


def _intro(title: str) -> list[str]:
    """What a section is for, if that is more than its settings."""
    field = Settings.model_fields[title.partition("]")[0][1:]]
    text = vars(field.annotation).get("__doc__") if isinstance(field.annotation, type) else None
    return [" ".join(text.split()), ""] if text and not title.endswith('"') else []


def _parts(entry: Entry) -> list[str]:
    words = f"{entry.place} {entry.option} {entry.method} {entry.text} {entry.theirs}".lower()
    return [words, re.sub(r"[-_ ]", "_", words)]
