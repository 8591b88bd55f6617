"""What may differ between a run's settings.toml and the settings that it is continued with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinlite.config.load import load_settings
from spinlite.config.settings import Memory, Settings
from spinlite.errors import SpinliteError

MEMORY_SETTINGS = {f"memory.{name}" for name in Memory.model_fields} - {"memory.quantize"}
ALWAYS = {"about", "run.rounds", "judge.stop"} | MEMORY_SETTINGS  # may change whenever a run is continued
AFTER_GUARD = {"learn.lr", "method.beta"}  # may change too after a guard undid a round


def load_kept_settings(path: Path) -> Settings:
    """The settings.toml of a run folder. Raises SpinliteError, with the file's name, if this version can't read it."""
    try:
        return load_settings(str(path))
    except SpinliteError as error:
        raise SpinliteError(
            f"the settings of this run, in {path}, can't be used: {error.problem}",
            fix=f"fix them there ({error.fix}; a setting that this version does not know can be removed), "
            "or start a new run with another --name",
        ) from None


def refuse_changes(folder: Path, kept: Settings, now: Settings, after_guard: bool) -> None:
    """Raises SpinliteError if `now` differs from the `kept` settings of the run in `folder` where it must not."""
    before, after = _flatten(kept.model_dump()), _flatten(now.model_dump())
    refused = changed_keys(kept, now) - ALWAYS - (AFTER_GUARD if after_guard else set())
    changes = [f"{key} = {before.get(key)!r} there, {after.get(key)!r} now" for key in sorted(refused)]
    if changes:
        raise SpinliteError(
            f"{folder} was made with other settings: {'; '.join(changes[:5])}",
            fix=f"give this run another --name, or delete {folder} to start it over",
        )


def changed_keys(kept: Settings, now: Settings) -> set[str]:
    """The settings that differ, as "section.key"."""
    before, after = _flatten(kept.model_dump()), _flatten(now.model_dump())
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
