"""A preset and its overrides -> Settings.

A key that is unknown, of the wrong type or out of range is an error that says where it is and how to fix it.
"""

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spinlite.config.decode import decode
from spinlite.config.fields import SECTIONS, fields_of, method_model
from spinlite.config.kinds import Kind
from spinlite.config.mistakes import explain, nearest, no_preset, other_file, outside_sections, repair, unknown_section
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import METHOD, Settings
from spinlite.config.spelling import show, to_type
from spinlite.errors import SpinliteError
from spinlite.methods.registry import METHODS

ROUND_LENGTH = {"updates", "epochs"}  # either says how long a round is
LARGEST = 2**16  # bytes of a preset: the longest that ships has 2 kB


def load_settings(preset: str, overrides: Iterable[str] = (), **direct: Any) -> Settings:
    """Settings from a shipped preset's name or a TOML file's path, with `section.key=value` overrides.

    An override's value is read by the type of its setting. `direct` are more overrides, written `section__key=value`; None
    keeps the value of the preset. Raises SpinliteError for anything unknown, of the wrong type or out of range.
    """
    tree = _read(preset)
    changes: dict[str, dict[str, Any]] = {}
    for text in overrides:
        section, key, value = _split(text)
        changes.setdefault(section, {})[key] = value
    method = changes.get("method", {}).get("name") or _name_of_method(tree)
    for section, values in changes.items():
        fields = fields_of(section, method)
        changes[section] = {key: Kind(fields[key]).parse(text) if key in fields else text for key, text in values.items()}
    for place, value in direct.items():
        section, _, key = place.partition("__")
        if value is not None:
            changes.setdefault(section, {})[key] = value
        if place == "data__folder" and value is not None:
            changes["data"].setdefault("dataset", None)  # another place for the pictures, instead of the preset's
    for section, values in changes.items():
        _merge(tree, section, values, "--set")
    return validate_settings(tree, {f"{section}.{key}" for section, values in changes.items() for key in values})


def validate_settings(tree: Mapping[str, Any], typed: Collection[str] = ()) -> Settings:
    """Check a tree, as TOML gives it -> Settings with every default written out. Raises SpinliteError.

    `typed` are the settings, as "section.key", that were given on the command line.
    """
    try:
        settings = Settings.model_validate(tree)
        name = settings.method.get("name", METHOD)
        if not isinstance(name, str) or name not in METHODS:
            fix = f"{nearest(str(name), METHODS)} (type e.g. {to_type('method.name', METHOD)})"
            raise SpinliteError(f"unknown method {show(name)}", fix=fix)
        values = method_model(name).model_validate(settings.method | {"name": name})
    except ValidationError as error:
        raise explain(error, typed) from None
    learn = settings.learn
    if learn.updates and learn.epochs:
        problem = f"learn.updates = {learn.updates} and learn.epochs = {learn.epochs:g} both say how long a round is"
        raise SpinliteError(problem, fix="type --set learn.updates=none, or remove one of them")
    if learn.ema and learn.optimizer == "schedulefree":
        problem = "learn.ema averages the weights, and the optimizer schedulefree does so already"
        raise SpinliteError(problem, fix="type --set learn.ema=0, or choose another learn.optimizer")
    prodigy = learn.optimizer == "prodigy"
    if learn.lr and (learn.lr < 0.1 if prodigy else learn.lr == 1):
        reason = "finds the rate itself: its lr is a factor on that, 1 unless it diverges" if prodigy else "needs far less"
        fix = f"type {to_type('learn.lr', 1 if prodigy else 3e-4)}"
        raise SpinliteError(f"learn.lr = {learn.lr:g}, but {learn.optimizer} {reason}", fix=fix)
    return settings.model_copy(update={"method": values.model_dump()})


def _read(preset: str, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    known = shipped_presets()
    path = known.get(preset) or (extended_by[-1].parent if extended_by else Path()) / Path(preset).expanduser()
    if not _is_file(path):
        child = f" ({extended_by[-1]} extends it)" if extended_by else ""
        raise no_preset(preset, path, child, known)
    path = path.resolve()
    if path in extended_by:
        raise SpinliteError(f"{path} extends itself", fix="remove one `extends` line: the presets form a circle")
    tree = _parse(path)
    parent = tree.pop("extends", None)
    if not isinstance(parent, str | None):
        fix = 'write one name or path, e.g. extends = "demo"'
        raise SpinliteError(f"extends = {show(parent)} in {path} is not a preset", fix=fix)
    base = _read(parent, (*extended_by, path)) if parent is not None else {}
    if "about" in tree:
        base["about"] = tree.pop("about")
    for section, values in tree.items():
        _merge(base, section, values, str(path))
    return base


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no disk takes
        return False


def _parse(path: Path) -> dict[str, Any]:
    """The tree of a TOML file. Raises SpinliteError for what is none."""
    if other := other_file(path, path.stat().st_size > LARGEST):
        raise other
    text = decode(path.read_bytes(), str(path))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpinliteError(f"{path} is not valid TOML: {error}", fix=repair(text, str(error))) from None
    except (ValueError, RecursionError):
        fix = "write plain values; no setting has thousands of digits or brackets"
        raise SpinliteError(f"{path} is not valid TOML: a number or a list in it is too long", fix=fix) from None


def _split(text: str) -> tuple[str, str, str]:
    """ "section.key=value" -> its three parts."""
    place, equals, value = text.partition("=")
    section, dot, key = (part.strip() for part in place.partition("."))
    if not (equals and dot) or "." in key:
        if not dot and (error := outside_sections(section, value.strip(), typed=True)):
            raise error
        raise SpinliteError(f"--set {show(text)} is not section.key=value", fix="type e.g. --set learn.updates=200")
    return section, key, value.strip()


def _name_of_method(tree: Mapping[str, Any]) -> str:
    section = tree.get("method")
    return str(section.get("name", METHOD)) if isinstance(section, dict) else METHOD


def _merge(tree: dict[str, Any], section: str, values: Any, source: str) -> None:
    """Put a section's values over those in the tree.

    Another method drops the settings of the first. A new learn.epochs drops the learn.updates of before, and the other way.
    """
    if section not in SECTIONS:
        raise unknown_section(section, values, source, source == "--set")
    if not isinstance(values, dict):
        fix = f"write [{section}], then its keys in lines of their own"
        raise SpinliteError(f"{section} = {show(values)} in {source} is not a section", fix=fix)
    under = tree.get(section, {})
    if section == "method" and values.get("name", under.get("name", METHOD)) != under.get("name", METHOD):
        under = {}
    if section == "learn" and any(values.get(key) is not None for key in ROUND_LENGTH):
        under = {key: value for key, value in under.items() if key not in ROUND_LENGTH}
    tree[section] = under | values
