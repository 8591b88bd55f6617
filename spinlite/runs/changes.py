"""What may differ between a run's settings.toml and the settings that it is continued with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.settings import Memory, Settings
from spinlite.errors import SpinliteError
from spinlite.runs.journal import Journal

MEMORY_SETTINGS = {f"memory.{name}" for name in Memory.model_fields} - {"memory.quantize"}
SHOWN = {"judge.captions", "judge.prompts", "report.trackers", "report.on_end"}  # nothing of these is learned
ALWAYS = {"about", "run.rounds", "judge.stop"} | SHOWN | MEMORY_SETTINGS  # may change whenever a run is continued
NOT_SETTINGS = ("train", "heldout", "updates", "draws")  # what the journal's begin event counts beside the settings
PLACES = {f"model.{key}" for key in ("base", "vae", "text_encoder", "motion", "init_lora")} | {"data.folder"}  # may have moved
AFTER_GUARD = {"learn.lr", "method.beta"}  # may change too after a guard undid a round


def kept_settings(journal: Journal, path: Path) -> Settings | None:
    """The settings that a run was made with: as its journal says, else as `path`, its settings.toml, does; None if neither is.

    The journal decides, because it can't be edited by mistake. Raises SpinliteError if this version can't read them.
    """
    began = journal.events("begin")
    try:
        if began:
            tree = {name: value for name, value in began[0]["settings"].items() if name not in NOT_SETTINGS}
            for event in journal.events("settings"):
                for key, value in event["changes"].items():
                    section, _, name = key.rpartition(".")
                    (tree[section] if section else tree)[name] = value
            return validate_settings(tree)
        return load_settings(str(path)) if path.exists() else None
    except SpinliteError as error:
        raise SpinliteError(
            f"the settings of this run, in {journal.path if began else path}, can't be used: {error.problem}",
            fix="go on with the version of spinlite that made it, or start a new run with another --name",
        ) from None


def refuse_changes(folder: Path, kept: Settings, now: Settings, after_guard: bool) -> None:
    """Raises SpinliteError if `now` differs from the `kept` settings of the run in `folder` where it must not."""
    before, after = _flatten(kept.model_dump()), _flatten(now.model_dump())
    refused = changed_keys(kept, now) - ALWAYS - (AFTER_GUARD if after_guard else set())
    refused = {key for key in refused if not _is_same_place(key, before.get(key), after.get(key))}
    changes = [f"{key} = {before.get(key)!r} there, {after.get(key)!r} now" for key in sorted(refused)]
    if changes:
        raise SpinliteError(
            f"{folder} was made with other settings: {'; '.join(changes[:5])}",
            fix="type these as they were there, or give this run another --name",
        )


def changes(kept: Settings, now: Settings) -> dict[str, Any]:
    """What differs: "section.key" -> value now."""
    after = _flatten(now.model_dump(mode="json"))
    return {key: after.get(key) for key in sorted(changed_keys(kept, now))}


def changed_keys(kept: Settings, now: Settings) -> set[str]:
    """The settings that differ, as "section.key"."""
    before, after = _flatten(kept.model_dump()), _flatten(now.model_dump())
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _is_same_place(key: str, before: Any, after: Any) -> bool:
    """Whether two values name one file or folder: spelt in two ways, or moved. The run compares its contents all the same."""
    if key == "data.sources" and isinstance(before, tuple | list) and isinstance(after, tuple | list):
        pairs = list(zip(before, after, strict=False))
        others = [{**a, "folder": b.get("folder")} == b for a, b in pairs]
        same = [a.get("folder") == b.get("folder") or _is_same_place("data.folder", *_folders(a, b)) for a, b in pairs]
        return len(before) == len(after) and all(others) and all(same)
    if key not in PLACES or not (isinstance(before, str) and isinstance(after, str)):
        return False
    was, is_ = Path(before).expanduser(), Path(after).expanduser()
    moved = is_.exists() and not was.exists() and (key == "data.folder" or was.name == is_.name)
    return was.resolve() == is_.resolve() or moved


def _folders(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Any, Any]:
    return before.get("folder"), after.get("folder")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
