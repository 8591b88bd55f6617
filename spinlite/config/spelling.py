"""How a setting is typed on the command line and written into a preset. The only place that knows the short options."""

import json
from typing import Any

SHORT = {  # option of the command line: the setting that it stands for
    "data": "data.folder", "base": "model.base", "resolution": "model.resolution", "init_lora": "model.init_lora",
    "rank": "model.rank", "epochs": "learn.epochs", "lr": "learn.lr", "batch": "learn.batch", "rounds": "run.rounds",
}  # fmt: skip
LONGEST = 80  # characters of a value that are shown


def to_type(place: str, value: Any) -> str:
    """What to type for a setting: "--lr 0.0001", "--set play.steps=30"."""
    text = value if isinstance(value, str) else _toml(value)
    text = f'"{text}"' if not text or " " in text else text
    short = {setting: name for name, setting in SHORT.items()}.get(place)
    return f"--{short.replace('_', '-')} {text}" if short else f"--set {place}={text}"


def to_write(place: str, value: Any) -> str:
    """What to write into a preset for a setting: "lr = 0.0001 under [learn]"."""
    section, _, key = place.rpartition(".")
    if value == "none":
        return f"no {key} under [{section}]: remove the line"
    return f"{key} = {_toml(value)}" + (f" under [{section}]" if section else "")


def show(value: Any) -> str:
    """A value as the user gave it, cut if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets in brackets in brackets
        text = f"a {type(value).__name__} that is too long to show"
    return cut(text)


def cut(text: str) -> str:
    """Text, cut if it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and "\\" in value and "'" not in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)
