"""What a run will need and how it will be fitted into memory, before anything is downloaded or loaded.

Nothing here imports torch, so that a plan that is known is shown at once.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spinlite.config.presets import PACKAGE

PEAKS = Path(__file__).with_name("peaks.json")  # bytes that each shipped preset takes at the most
TRAIN, HELDOUT = 90, 10  # pictures that a plan without --data is made for
PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Plan:
    """How a preset is run on a card. Sizes in bytes, times in seconds of one round."""

    preset: str
    model: str
    method: str
    card: str
    limit: int  # of the card's memory
    levers: dict[str, Any]
    memory: dict[str, int]  # of the card at the most, by phase
    seconds: dict[str, float]  # by phase
    rounds: int
    ram: int
    disk: dict[str, int]  # by what takes it
    tried: list[dict[str, Any]]  # {"levers", "memory", "seconds", "fits", "chosen"} of each combination
    assumed: list[str]  # what is not known but estimated

    @property
    def peak(self) -> int:
        return max(self.memory.values())


def cache_folder() -> Path:
    """Where a computer keeps what can be made again."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "spinlite" / "plan"


def cache_name(*names: Any) -> str:
    """A name for what was made of these: of this program's code and the packages it computes with, too."""
    text = json.dumps([code_hash(), *names], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def code_hash() -> str:
    """A hash of the program and of the versions of what it computes with."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(path.read_bytes())
    for name in PACKAGES:
        found.update(importlib.metadata.version(name).encode())
    return found.hexdigest()


def load_plan(shelf: Path, name: str) -> Plan | None:
    """A plan that was kept under this name."""
    path = shelf / f"plan-{name}.json"
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save_plan(shelf: Path, name: str, plan: Plan) -> None:
    """Keep a plan; where that can't be written, it is made again the next time."""
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        (shelf / f"plan-{name}.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
    except OSError:
        return
