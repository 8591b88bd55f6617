"""A plan: what a run needs, and the memory settings with which it fits, before anything is downloaded or loaded.

Nothing here imports torch, so that a plan in the cache is shown at once.
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

PEAKS = Path(__file__).with_name("peaks.json")  # peak memory of each shipped preset, in bytes
TRAIN, HELDOUT = 90, 10  # numbers of pictures in a plan without --data
PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Plan:
    """How a preset runs on a card. Sizes are in bytes, times in seconds of one round."""

    preset: str
    model: str
    method: str
    card: str
    limit: int  # memory of the card that the run may use
    levers: dict[str, Any]
    memory: dict[str, int]  # peak on the card, by phase
    seconds: dict[str, float]  # by phase
    rounds: int
    ram: int
    disk: dict[str, int]  # by what it is for
    tried: list[dict[str, Any]]  # {"levers", "memory", "seconds", "fits", "chosen"} for each combination
    assumed: list[str]  # what is estimated, in words
    note: str = ""  # what a user of the base must know, in words
    round: str = ""  # how long a round is and how often it shows each picture, in words
    thing: str = "picture"  # what is learned: pictures, or clips

    @property
    def peak(self) -> int:
        return max(self.memory.values())


def cache_folder() -> Path:
    """The folder for plans in this computer's cache; it may be deleted."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "spinlite" / "plan"


def cache_name(*names: Any) -> str:
    """A name for something made from these values; it changes with spinlite's code and the packages' versions too."""
    text = json.dumps([code_hash(), *names], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def code_hash() -> str:
    """A hash of spinlite's code and of the versions of Python and PACKAGES."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in PACKAGES:
        digest.update(importlib.metadata.version(name).encode())
    return digest.hexdigest()


def load_plan(folder: Path, name: str) -> Plan | None:
    """The plan that was saved under this name; None if there is none that can be read."""
    path = folder / f"plan-{name}.json"
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save_plan(folder: Path, name: str, plan: Plan) -> None:
    """Save a plan. If the folder can't be written to, the plan is made again the next time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"plan-{name}.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
    except OSError:
        return
