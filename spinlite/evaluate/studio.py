"""Opens a base model with the LoRAs that are compared on it: the rounds of a run, or LoRA files."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.lora.apply import applied
from spinlite.lora.start import make_slots
from spinlite.memory.device import Device, choose_device
from spinlite.runs.files import fingerprint_files
from spinlite.runs.run import Run

BASE = "base"
CACHE = Path("runs") / "cache"  # where LoRA files without a run keep their samples

Remember = Callable[[Path], None]  # called with each folder of the cache that is used, for `spinlite runs clean`


@dataclass(frozen=True)
class Artist:
    """A model that draws: the base, a round of a run, or a LoRA file. `active`: within its block the network is that model."""

    name: str
    made_by: str  # the hash of its LoRA, or "base"
    active: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Studio:
    """A base model with the artists that share it, the first of which the others are compared with."""

    base: Family
    artists: Sequence[Artist]
    play: Play
    device: Device
    cache: Path
    remember: Remember


def open_run(run: Run, rounds: str) -> Studio:
    """A run's base, and rounds: "all", "best", "last", or numbers with commas. Round 0, where the run began, comes first.

    Raises SpinliteError if there is no such round, or the base has changed.
    """
    where = choose_device(run.memory)
    base, model = load_family(run.settings.model, where), run.settings.model
    slots = make_slots(base.net, base.lora_targets[model.targets], model, run.settings.run.seed, base.start)
    artists = [_round(run, base, slots, k) for k in (0, *chosen_rounds(run, rounds))]
    return Studio(base, artists, run.settings.drawn, where, run.cache, run.remember_cache)


def open_file(
    path: Path | None, model: Model, device: Device, play: Play, cache: Path, remember: Remember = lambda folder: None
) -> Studio:
    """A LoRA file on a base; without one, the base alone. The file's part for text encoders acts on all prompts."""
    base = load_family(model.model_copy(update={"init_lora": str(path) if path else None}), device)
    if path is None:
        return Studio(base, [Artist(BASE, BASE, nullcontext)], play, device, cache, remember)
    artist = Artist(path.stem, fingerprint_files([path]), partial(applied, base.net, base.start))
    return Studio(base, [artist], play, device, cache, remember)


def chosen_rounds(run: Run, word: str) -> list[int]:
    """The rounds, from 1, that a word stands for. Raises SpinliteError if there is none of that number."""
    there = sorted(int(path.stem) for path in run.snapshot_path(0).parent.glob("*.safetensors") if path.stem.isdigit())
    if 0 not in there:
        raise SpinliteError(f"{run.folder} holds no snapshots", fix="let `spinlite train` begin with the run first")
    judged = [event["round"] for event in run.events("judge")]
    named = {"all": there, "best": [run.best], "last": judged[-1:]}
    asked = named[word] if word in named else [_number(part) for part in word.split(",")]
    if missing := [k for k in asked if k not in there]:
        fix = f"give all, best, last, or some of 0 to {there[-1]}"
        raise SpinliteError(f"{run.folder} has no round {missing[0]}", fix=fix)
    return sorted(set(asked) - {0})


def _number(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise SpinliteError(f"--rounds {text!r} is not a round", fix="give all, best, last, or numbers such as 1,3")
    return int(text)


def _round(run: Run, base: Family, slots: Slots, k: int) -> Artist:
    plain = k == 0 and not base.start

    @contextlib.contextmanager
    def active() -> Iterator[None]:
        state, about = run.snapshots.read(k)
        if about["base"] != base.base_hash:
            problem = f"{base.title} has changed since {run.snapshot_path(k)} was made"
            raise SpinliteError(problem, fix="put the original files of the base model back")
        slots.load("policy", state)
        with slots.use("base" if plain else "policy"):
            yield

    made_by = BASE if plain else fingerprint_files([run.snapshot_path(k)])
    return Artist(BASE if plain else f"{run.name}-{k}", made_by, active)
