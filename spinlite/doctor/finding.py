"""A line of the doctor's screen."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A line of the screen. "fail": training can't run; "warn": it runs, but not well; "note": worth knowing."""

    mark: Literal["ok", "note", "warn", "fail"]
    what: str
    found: str
    why: str = ""
    fix: str = ""
