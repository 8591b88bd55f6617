"""What is wrong with a preset or a setting, said in our words, with the one thing to type or to write."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spinlite.config.fields import SECTIONS, field_of, fields_of, owners
from spinlite.config.kinds import YES, Kind
from spinlite.config.peers import answer, spell
from spinlite.config.presets import USUAL
from spinlite.config.settings import METHOD
from spinlite.config.spelling import cut, show, to_type, to_write
from spinlite.errors import SpinliteError
from spinlite.methods.registry import METHODS

PRESET = f"`spinlite presets` to choose one, then e.g. spinlite train {USUAL}"


def explain(error: ValidationError, typed: Collection[str]) -> SpinliteError:
    """The first fault that pydantic found. `typed`: the settings that were given on the command line."""
    first = error.errors(include_url=False)[0]
    place = ".".join([*(["method"] if error.title in METHODS else []), *map(str, first["loc"])])
    section, _, key = place.rpartition(".")
    method = error.title if error.title in METHODS else METHOD
    if first["type"] == "extra_forbidden":
        return unknown_key(section, key, first["input"], method, place in typed)
    value, field = first["input"], field_of(place, method)
    where = f" in {_heading(section)}" if section else " in the preset"
    kind = Kind(field) if field else None
    ours = first["type"] == "value_error"  # a rule of settings.py
    rule = first["msg"].removeprefix("Value error, ") if ours or not kind else f"should be {kind}"
    better: Any = "…"
    if kind:
        better = kind.suggest(value)
        better = kind.any() if better == value and type(better) is type(value) else better
    fix = f"type {to_type(place, better)}" if place in typed else f"write {_line(place, better)}"
    return SpinliteError(f"{key} = {show(value)}{where} {rule}", fix=fix)


def unknown_key(section: str, key: str, value: Any, method: str, typed: bool) -> SpinliteError:
    """A key that its section does not have."""
    known = fields_of(section.partition(".")[0], method)
    if theirs := answer(key, value, typed):
        return theirs
    having = [name for name in METHODS if key in fields_of("method", name)]
    if section == "method" and having:
        return SpinliteError(f"{method} has no setting {key!r}", fix=f"remove it, or set method.name to {' or '.join(having)}")
    if elsewhere := owners(key):
        fix = " or ".join(spell(place, value, typed) for place in elsewhere)
        return SpinliteError(f"there is no {key} in {_heading(section)}, but {' and '.join(elsewhere)}", fix=fix)
    near = difflib.get_close_matches(key[:100], known, 1)
    better = f" {spell(f'{section}.{near[0]}', value, typed)}" if near and section in SECTIONS else ""
    return SpinliteError(f"unknown key {show(key)} in {_heading(section)}", fix=nearest(key, known) + better)


def unknown_section(section: str, values: Any, source: str, typed: bool) -> SpinliteError:
    """A section, or a key outside the sections, that does not exist."""
    if error := outside_sections(section, values, typed):
        return error
    inside = values.items() if isinstance(values, dict) and not difflib.get_close_matches(section[:100], SECTIONS) else ()
    for key, value in inside:
        if error := answer(key, value, typed):
            return error
    return SpinliteError(f"unknown section [{show(section)[1:-1]}] in {source}", fix=nearest(section, SECTIONS))


def outside_sections(key: str, value: Any, typed: bool) -> SpinliteError | None:
    """A key without its section: another trainer's word, or one of ours."""
    if isinstance(value, dict):
        return None
    if theirs := answer(key, value, typed):
        return theirs
    if places := owners(key.strip().lstrip("-").replace("-", "_")):
        fix = " or ".join(spell(place, value, typed) for place in places)
        return SpinliteError(f"{key} is {' or '.join(places)}", fix=fix)
    return None


def no_preset(name: str, path: Path, child: str, known: Iterable[str]) -> SpinliteError:
    """A preset that is not there. `child` says which file extends it."""
    if name and not child and path.is_dir() and path.resolve() != Path.cwd():
        return SpinliteError(f"{name} is a folder, no preset", fix=f"type {PRESET} {to_type('data.folder', name)}")
    return SpinliteError(f"no preset {show(name)}{child}", fix=nearest(name, known) + " (`spinlite presets` lists them)")


def other_file(path: Path, large: bool) -> SpinliteError | None:
    """The error for a file that is no preset; None if it may be one."""
    kind = path.suffix.lower()
    if kind in (".safetensors", ".ckpt"):
        return SpinliteError(f"{path} is a model, no preset", fix=f"type {PRESET} {to_type('model.base', str(path))}")
    if kind in (".json", ".yaml", ".yml"):
        fix = f"type `spinlite presets show {USUAL} > mine.toml`, and set what you need there"
        return SpinliteError(f"{path} is no preset: those of spinlite are TOML files", fix=fix)
    if large:
        fix = f"name another file; `spinlite presets show {USUAL}` prints one"
        return SpinliteError(f"{path} is too large for a preset", fix=fix)
    return None


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word[:100], names, 1)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"


def repair(text: str, message: str) -> str:
    """What to write instead of the line that TOML's message names."""
    if "overwrite" in message or "twice" in message:
        return "remove one of the two lines that set the same"
    found = re.search(r"at line (\d+)", message)
    if not found:
        return "fix the end of the preset: a quote or a bracket is not closed"
    line = text.splitlines()[int(found[1]) - 1].strip()
    key, equals, value = (part.strip() for part in line.partition("="))
    bare = value.partition(" #")[0].strip()
    lower = bare.lower() if bare.lower() in YES else ""
    whole = f"0{bare}" if bare.startswith(".") else ""
    unquoted = bare.strip("\"'")
    for better in (lower, whole, f"'{unquoted}'"):  # True, .5, and a path in double quotes or in none
        if equals and _is_toml(f"x = {better}") and not _is_toml(line):
            why = "; backslashes need single quotes, or / instead" if "\\" in bare else ""
            return f"write {cut(f'{key} = {better}')} in line {found[1]}{why}"
    return f"fix line {found[1]} of the preset: {cut(line)}"


def _line(place: str, value: Any) -> str:
    """`to_write`, where a source's place names its table."""
    section, _, key = place.rpartition(".")
    table = re.sub(r"\.\d+$", "", section)
    return to_write(place, value) if table == section else f"{to_write(key, value)} under [[{table}]]"


def _heading(section: str) -> str:
    table = re.sub(r"\.\d+$", "", section)
    return ("[[{}]]" if table != section else "[{}]").format(table) if section else "the preset"


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
