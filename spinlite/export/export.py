"""A run's snapshot -> a LoRA file that other programs open, compared with what was trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.export.write import write_lora, write_sidecars
from spinlite.families.family import Family
from spinlite.lora.bake import bake_dora
from spinlite.lora.layouts import Layout
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.read import text_encoder_part
from spinlite.lora.tensors import Pair, lora_of_snapshot
from spinlite.memory.device import DTYPES
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.training.sheet import read_current

PLACES = {"folder", "dataset", "base", "vae", "init_lora"}  # settings of which the last part alone is written


@dataclass(frozen=True)
class ExportOptions:
    """How a LoRA is to be written. A strength below 0 pushes away from what was learned."""

    layout: Layout = "kohya"
    dtype: str = "fp16"
    strength: float = 1.0
    sidecars: bool = False


def export(run: Run, base: Family, k: int, path: Path, wanted: ExportOptions) -> str:
    """Write snapshot k of a run, open it again and compare; returns what was found, in words.

    `base` is the run's base model, without LoRA slots. Raises SpinliteError where the file does not hold the snapshot.
    """
    lora, lost = read_snapshot(run, base, k)
    lora = {name: pair.times(wanted.strength) for name, pair in lora.items()}
    said = header_info(run, base, k, path.stem, wanted)
    found = str(write_lora(path, lora, base, said, wanted.layout, DTYPES[wanted.dtype]))
    if wanted.sidecars:
        write_sidecars(path, said)
    return found if lost is None else f"{found}; DoRA as a plain LoRA, {lost:.1%} off"


def read_snapshot(run: Run, base: Family, k: int) -> tuple[dict[str, Pair], float | None]:
    """(snapshot k as plain pairs, what a DoRA lost by that). Raises SpinliteError where it is not there or not of this base."""
    state, told = _read(run, k)
    if told["base"] != base.base_hash:
        raise SpinliteError(
            f"{base.title} has changed since {run.snapshot_path(k)} was made", fix="put the base model's files back"
        )
    if any("magnitude" in name for name in state):
        return bake_dora(state, told["scale"], base.net)
    return lora_of_snapshot(state, told["scale"]) | text_encoder_part(base.start), None


def read_plain_snapshot(run: Run, k: int) -> dict[str, Pair]:
    """Snapshot k of a run without DoRA and without a LoRA to start from: no base is needed. Raises as `snapshot` does."""
    state, told = _read(run, k)
    return lora_of_snapshot(state, told["scale"])


def _read(run: Run, k: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = run.snapshot_path(k)
    if not path.exists():
        last = len(run.events("judge"))
        last += run.snapshot_path(last + 1).exists()  # cut off before it was judged
        fix = f"give one of 0 to {last}" if run.snapshot_path(0).exists() else "let `spinlite train` begin it first"
        raise SpinliteError(f"{run.folder} has no round {k}", fix=fix)
    state, metadata = read_tensors(path)
    return state, json.loads(metadata["spinlite"])


def header_info(run: Run, base: Family, k: int, title: str, wanted: ExportOptions) -> HeaderInfo:
    """What the header says of a run's snapshot."""
    settings, began, rounds = run.settings, run.events("begin")[0], run.events("judge")
    figures = next((event for event in rounds if event["round"] == k), {})  # none of the start, nor before it is judged
    method = settings.method["name"]
    words = f"spinlite, {method}, round {k} of {max(k, len(rounds))}"
    if wanted.strength < 0:
        words += f"; EXPERIMENTAL: pushes away from what was learned, by {-wanted.strength:g}"
    picture = read_current(run.sheet_path(k)) if k and run.sheet_path(k).exists() else None
    last = figures or (rounds[-1] if rounds else began)
    return HeaderInfo(
        title=title, family=base.export_metadata(), base=Path(settings.model.base).name, strength=wanted.strength,
        description=words, tags=began.get("tags", {}), pictures=began["settings"]["train"], started=began["time"],
        finished=last["time"], thumbnail=picture,
        ours={
            "method": settings.method, "round": k, "rounds": max(k, len(rounds)), "base": base.base_hash,
            "settings": _public(settings.model_dump()),
            "figures": {key: value for key, value in figures.items() if isinstance(value, float) and key != "time"},
        },
    )  # fmt: skip


def _public(value: Any, key: str = "") -> Any:
    """Settings without the places of files."""
    if isinstance(value, dict):
        return {name: _public(below, name) for name, below in value.items()}
    if isinstance(value, list):
        return [_public(below, key) for below in value]
    return Path(value).name if key in PLACES and isinstance(value, str) else value


def choose_round(run: Run, word: str) -> int:
    """The round that "best", "last" or a number names. Raises SpinliteError where there is none."""
    rounds = run.events("judge")
    if word in ("best", "last") and not rounds:
        raise SpinliteError(f"{run.folder} has no finished round", fix="let `spinlite train` finish one first")
    match word:
        case "best":
            return run.best
        case "last":
            return len(rounds)
    if not word.isdigit():
        raise SpinliteError(f"--round {word!r} is no round", fix="give best, last, or a number")
    return int(word)
