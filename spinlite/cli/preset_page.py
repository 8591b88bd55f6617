"""A preset written out: what it and those that it extends say, with their comments, then the settings that they leave."""

import re
from collections.abc import Iterator
from typing import Any

import tomli_w

from spinlite.config.fields import fields_of
from spinlite.config.load import load_settings
from spinlite.config.presets import preset_texts
from spinlite.config.reference import entries

KEY = re.compile(r"\s*([a-z_]+)\s*=")
TABLE = re.compile(r"\s*\[+([\w.]+)\]")


def preset_page(name: str) -> str:
    """The whole of a preset, as a file that is a preset itself. Raises SpinliteError for one that is wrong."""
    tree, texts = load_settings(name).model_dump(), preset_texts(name)
    said: dict[str, list[str]] = {}
    for text in texts:
        for place, comment in _comments(text):
            said[place] = said.get(place, []) + comment if place.endswith(".") else said.get(place, comment)
    lines = [*_head(texts[0]), *_written("about", tree.pop("about"))]
    method = tree["method"]["name"]
    defaults = {entry.place: entry for entry in entries() if entry.method in ("", method)}
    for section, values in tree.items():
        lines += ["", f"[{section}]"]
        keys = [key for key in fields_of(section, method) if key != "sources"]
        given = [key for key in keys if f"{section}.{key}" in said and values[key] is not None]
        for key in given:
            lines += [*said[f"{section}.{key}"], *_written(key, values[key])]
        lines += said.get(f"{section}.", [])
        for entry in (defaults[f"{section}.{key}"] for key in keys if key not in given):
            lines.append(f"# {entry.place.partition('.')[2]} = {entry.default}  # {entry.text}")
        for source in values.get("sources", []):
            lines += ["", "[[data.sources]]"]
            lines += [line for key, value in source.items() if value is not None for line in _written(key, value)]
    return "\n".join(lines)


def _comments(text: str) -> Iterator[tuple[str, list[str]]]:
    """("section.key", the lines of comment right above it) of each key; ("section.", lines) for comments above no key."""
    section, comment = "", []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("#"):
            comment.append(line.strip())
            continue
        key, table = KEY.match(line), TABLE.match(line)
        if key or (section and comment):
            yield f"{section}.{key[1] if key else ''}", comment
        section, comment = table[1] if table else section, []


def _head(text: str) -> list[str]:
    """The comments of a preset before its first section."""
    lines = text.partition("\n[")[0].splitlines()
    return [line for line in lines if line.startswith("#")]


def _written(key: str, value: Any) -> list[str]:
    return tomli_w.dumps({key: value}).rstrip().splitlines()
