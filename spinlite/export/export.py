"""A run's snapshot -> a LoRA file for other programs, read back and compared with what was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.export.write import choose_layout, write_lora, write_sidecars
from spinlite.families.family import Family
from spinlite.lora.bake import bake_dora
from spinlite.lora.layouts import Layout
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.read import text_encoder_part
from spinlite.lora.tensors import NOTHING, Pair, changes_nothing, lora_of_snapshot
from spinlite.memory.device import DTYPES
from spinlite.runs.run import Run
from spinlite.training.sheet import read_current

DIFFUSERS = (
    "Only diffusers loads this layout. ComfyUI drops its attention (64 of 192 modules of SD 1.5 are left), and A1111, Forge, "
    "SD.Next, InvokeAI and sd-scripts load nothing of it. For those, and to publish it, leave out --format diffusers."
)
CAREFUL = 0.1  # relative error of a DoRA as a plain LoRA, above which the export warns
STRONGEST = 1000.0
PLACES = {"folder", "dataset", "base", "vae", "text_encoder", "motion", "init_lora"}  # of paths only the last part is exported


@dataclass(frozen=True)
class ExportOptions:
    """How to write a LoRA. A strength below 0 pushes away from what was learned."""

    layout: Layout | None = None  # None: the one that most programs load
    dtype: str = "fp16"
    strength: float = 1.0
    sidecars: bool = False


def name_of(run: Run, k: int, options: ExportOptions) -> str:
    """The name, without ending, of an exported file: it holds whatever differs from the default."""
    kind = "-negative" if options.strength < 0 else "-strength"
    parts = [
        f"{run.name}-{k}", f"{kind}{abs(options.strength):g}" * (options.strength != 1.0),
        f"-{options.dtype}" * (options.dtype != "fp16"), f"-{options.layout}" * (options.layout == "diffusers"),
    ]  # fmt: skip
    return "".join(parts)


def check_strength(strength: float) -> float:
    """The strength itself. Raises SpinliteError if it is not a number of a sensible size."""
    if not abs(strength) <= STRONGEST:
        raise SpinliteError(f"a strength of {strength:g} makes no sense", fix="give a number such as --strength 0.8")
    return strength


def export(run: Run, base: Family, k: int, path: Path, options: ExportOptions) -> str:
    """Write snapshot k of a run, read the file back and compare; returns the result in words.

    `base` is the run's base model, without LoRA slots. Raises SpinliteError if the file does not match the snapshot.
    """
    lora, lost = read_snapshot(run, base, k)
    lora = {name: pair.times(options.strength) for name, pair in lora.items()}
    about = header_info(run, base, k, path.stem, options)
    layout = choose_layout(base, options.layout)
    result = str(write_lora(path, lora, base, about, layout, DTYPES[options.dtype]))
    if options.sidecars:
        write_sidecars(path, about)
    if changes_nothing(lora):
        return NOTHING
    if lost is None:
        return result
    baked = f"{result}; DoRA as a plain LoRA, {lost:.1%} off"
    return baked if lost <= CAREFUL else f"CAREFUL, this file does not do what was trained: {baked}; see docs/lora.md"


def read_snapshot(run: Run, base: Family, k: int) -> tuple[dict[str, Pair], float | None]:
    """(snapshot k as a plain LoRA, the relative error of that for a DoRA, else None).

    Raises SpinliteError if there is no such snapshot, or it belongs to another base.
    """
    state, about = _read(run, k)
    if about["base"] != base.base_hash:
        problem = f"{base.title} has changed since {run.snapshot_path(k)} was made"
        raise SpinliteError(problem, fix="put the original files of the base model back")
    if any("magnitude" in name for name in state):
        return bake_dora(state, about["scale"], base.net)
    return lora_of_snapshot(state, about["scale"]) | text_encoder_part(base.start), None


def read_plain_snapshot(run: Run, k: int) -> dict[str, Pair]:
    """Snapshot k of a run without DoRA and without a starting LoRA; needs no base. Raises SpinliteError if there is none."""
    state, about = _read(run, k)
    return lora_of_snapshot(state, about["scale"])


def _read(run: Run, k: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    rounds = [event["round"] for event in run.events("judge")]
    last = max(rounds, default=0)
    last += run.snapshot_path(last + 1).exists()  # interrupted before it was judged
    if k > last or not (run.snapshot_path(k).exists() or rounds):
        fix = f"give one of 0 to {last}" if run.snapshot_path(0).exists() else "run `spinlite train` first"
        raise SpinliteError(f"{run.folder} has no round {k}", fix=fix)
    return run.snapshots.read(k)


def header_info(run: Run, base: Family, k: int, title: str, options: ExportOptions) -> HeaderInfo:
    """What the LoRA file's header says about snapshot k of a run."""
    settings, began, rounds = run.settings, run.events("begin")[0], run.events("judge")
    figures = next((event for event in rounds if event["round"] == k), {})  # empty for round 0, and before the round is judged
    method = settings.method["name"]
    of = max([k, *(event["round"] for event in rounds)])
    words = f"spinlite, {method}, round {k} of {of}"
    if options.strength < 0:
        words += f"; EXPERIMENTAL: pushes away from what was learned, by {-options.strength:g}"
    picture = read_current(run.sheet_path(k)) if k and run.sheet_path(k).exists() else None
    last = figures or (rounds[-1] if rounds else began)
    return HeaderInfo(
        title=title, family=base.export_metadata(), base=Path(settings.model.base).name, strength=options.strength,
        description=words, tags=began.get("tags", {}), pictures=began["settings"]["train"], started=began["time"],
        finished=last["time"], thumbnail=picture,
        ours={
            "method": settings.method, "round": k, "rounds": of, "base": base.base_hash,
            "settings": _without_folders(settings.model_dump(exclude={"report": True, "judge": {"prompts"}})),
            "figures": {key: value for key, value in figures.items() if isinstance(value, float) and key != "time"},
        },
    )  # fmt: skip


def _without_folders(value: Any, key: str = "") -> Any:
    """Settings without the folders of files."""
    if isinstance(value, dict):
        return {name: _without_folders(below, name) for name, below in value.items()}
    if isinstance(value, list):
        return [_without_folders(below, key) for below in value]
    return Path(value).name if key in PLACES and isinstance(value, str) else value


def choose_round(run: Run, word: str) -> int:
    """The round that "best", "last" or a number stands for. Raises SpinliteError if it is not one of these."""
    rounds = run.events("judge")
    if word in ("best", "last") and not rounds:
        raise SpinliteError(f"{run.folder} has no finished round", fix="let `spinlite train` finish a round first")
    match word:
        case "best":
            return run.best
        case "last":
            return rounds[-1]["round"]
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise SpinliteError(f"--round {word!r} is not a round", fix="give best, last, or a number")
    return int(word)
