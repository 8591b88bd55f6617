"""Who is told how far work is: the console, a page, a test."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

Progress = Callable[[int, int], None]  # called with (done, of)


class Watch(Protocol):
    """Who is told what happens. The console is one; tests have theirs."""

    def say(self, text: str) -> None: ...
    def show_facts(self, facts: dict[str, str]) -> None: ...
    def phase(self, title: str, total: int) -> contextlib.AbstractContextManager[Callable[..., None]]: ...
    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None: ...
