"""Prompt syntax of WebUIs in captions. A text encoder reads it as plain text. Nothing here imports torch."""

import re
from collections.abc import Iterable

SYNTAX = {
    "prompt weights": re.compile(r"(?<!\\)\((?!:)[^()]*:\s*[+-]?\d*\.?\d+\s*\)"),
    "wildcards": re.compile(r"__[A-Za-z][\w/*-]*?__|\{[^{}|]*\|[^{}]*\}"),
}


def find_syntax(captions: Iterable[str]) -> dict[str, list[str]]:
    """What a WebUI would take for a command in captions: what it is -> an example from each caption."""
    found: dict[str, list[str]] = {}
    for caption in captions:
        for what, pattern in SYNTAX.items():
            if match := pattern.search(caption):
                found.setdefault(what, []).append(match[0])
    return found
