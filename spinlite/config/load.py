"""A preset and its overrides -> Settings.

A key that is unknown, of the wrong type or out of range is an error that says where it is and how to fix it.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model

from spinlite.config.presets import shipped_presets
from spinlite.config.settings import METHOD, Section, Settings
from spinlite.errors import SpinliteError
from spinlite.methods.registry import METHODS

ROUND_LENGTH = {"updates", "epochs"}  # either says how long a round is


def load_settings(preset: str, overrides: Iterable[str] = (), **direct: Any) -> Settings:
    """Settings from a shipped preset's name or a TOML file's path, with `section.key=value` overrides.

    `direct` are more overrides, written `section__key=value`; None keeps the value of the preset.
    Raises SpinliteError for anything unknown, of the wrong type or out of range.
    """
    tree = _read(preset)
    changes: dict[str, dict[str, Any]] = {}
    for text in overrides:
        place, equals, value = text.partition("=")
        section, dot, key = place.strip().partition(".")
        if not (equals and dot) or "." in key:
            raise SpinliteError(f"--set {text!r} is not section.key=value", fix="write e.g. --set learn.updates=200")
        changes.setdefault(section, {})[key] = _value(value.strip())
    for place, value in direct.items():
        section, _, key = place.partition("__")
        if value is not None:
            changes.setdefault(section, {})[key] = value
    for section, values in changes.items():
        _merge(tree, section, values, "--set")
    return validate_settings(tree)


def validate_settings(tree: Mapping[str, Any]) -> Settings:
    """Check a tree, as TOML gives it -> Settings with every default written out. Raises SpinliteError."""
    try:
        settings = Settings.model_validate(tree)
        name = settings.method.get("name", METHOD)
        if not isinstance(name, str) or name not in METHODS:
            raise SpinliteError(f"unknown method {name!r}", fix=_nearest(str(name), METHODS))
        values = _method_model(name).model_validate(settings.method | {"name": name})
    except ValidationError as error:
        raise _explain(error) from None
    learn = settings.learn
    if learn.updates and learn.epochs:
        problem = f"learn.updates = {learn.updates} and learn.epochs = {learn.epochs:g} both say how long a round is"
        raise SpinliteError(problem, fix="remove one of them")
    prodigy = learn.optimizer == "prodigy"
    if learn.lr and (learn.lr < 0.1 if prodigy else learn.lr == 1):
        reason = "finds the rate itself: its lr is a factor on that, 1 unless it diverges" if prodigy else "needs far less"
        fix = f"set learn.lr = {1 if prodigy else 3e-4}"
        raise SpinliteError(f"learn.lr = {learn.lr:g}, but {learn.optimizer} {reason}", fix=fix)
    return settings.model_copy(update={"method": values.model_dump()})


@cache
def _method_model(name: str) -> type[BaseModel]:
    fields: dict[str, Any] = {"name": (str, name)}
    for f in dataclasses.fields(METHODS[name]):
        infinite = {"allow_inf_nan": True} if f.name == "bound" else {}  # only a bound may be infinite: then there is none
        fields[f.name] = (f.type, Field(f.default, **infinite, **f.metadata))
    return create_model(name, __base__=Section, **fields)


def _read(preset: str, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    known = shipped_presets()
    path = known.get(preset) or (extended_by[-1].parent if extended_by else Path()) / preset
    if not path.is_file():
        child = f" ({extended_by[-1]} extends it)" if extended_by else ""
        raise SpinliteError(f"no preset {preset!r}{child}", fix=_nearest(preset, known) + " (`spinlite presets` lists them)")
    path = path.resolve()
    if path in extended_by:
        raise SpinliteError(f"{path} extends itself", fix="remove one `extends` line: the presets form a circle")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpinliteError(f"{path} is not valid TOML: {error}", fix="fix that line of the preset") from None
    parent = tree.pop("extends", None)
    if not isinstance(parent, str | None):
        fix = 'write one name or path, e.g. extends = "demo"'
        raise SpinliteError(f"extends = {parent!r} in {path} is not a preset", fix=fix)
    base = _read(parent, (*extended_by, path)) if parent is not None else {}
    if "about" in tree:
        base["about"] = tree.pop("about")
    for section, values in tree.items():
        _merge(base, section, values, str(path))
    return base


def _merge(tree: dict[str, Any], section: str, values: Any, source: str) -> None:
    """Put a section's values over those in the tree.

    Another method drops the settings of the first. A new learn.epochs drops the learn.updates of before, and the other way.
    """
    sections = [name for name in Settings.model_fields if name != "about"]
    if section not in sections:
        raise SpinliteError(f"unknown section [{section}] in {source}", fix=_nearest(section, sections))
    if not isinstance(values, dict):
        raise SpinliteError(f"{section} = {values!r} in {source} is not a section", fix=f"write [{section}], then its keys")
    under = tree.get(section, {})
    if section == "method" and values.get("name", under.get("name", METHOD)) != under.get("name", METHOD):
        under = {}
    if section == "learn" and values.keys() & ROUND_LENGTH:
        under = {key: value for key, value in under.items() if key not in ROUND_LENGTH}
    tree[section] = under | values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> SpinliteError:
    first = error.errors()[0]
    place = [*(["method"] if error.title in METHODS else []), *map(str, first["loc"])]
    key, section = place[-1], place[0] if len(place) > 1 else ""
    if first["type"] == "extra_forbidden":
        return _unknown(key, section, error.title)
    rule = first["msg"].replace("Input should", "should")
    where = f"[{section}]" if section else "the preset"
    return SpinliteError(f"{key} = {first['input']!r} in {where} {rule}", fix=f"change {'.'.join(place)} to such a value")


def _unknown(key: str, section: str, method: str) -> SpinliteError:
    owners = [name for name in METHODS if key in _method_model(name).model_fields]
    if section == "method" and owners:
        return SpinliteError(f"{method} has no setting {key!r}", fix=f"remove it, or set method.name to {' or '.join(owners)}")
    model = _method_model(method) if section == "method" else Settings.model_fields[section].annotation if section else Settings
    known = getattr(model, "model_fields", {})
    return SpinliteError(f"unknown key {key!r} in {f'[{section}]' if section else 'the preset'}", fix=_nearest(key, known))


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
