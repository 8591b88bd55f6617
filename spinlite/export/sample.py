"""Test pictures of a LoRA: prompts x rounds x strengths x seeds, as one sheet and as files that a WebUI can reproduce."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spinlite.config.prompts import Prompt
from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.drawn_files import save_drawn
from spinlite.export.export import check_strength, choose_round, read_snapshot
from spinlite.export.write import lay_out
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.picture import Drawn
from spinlite.lora.apply import applied
from spinlite.lora.metadata import compute_hashes, tensor_bytes
from spinlite.lora.read import text_encoder_part
from spinlite.lora.tensors import NOTHING, Lora, changes_nothing
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.training.animation import is_clip, strip, write_animation
from spinlite.training.decode import decode_latents
from spinlite.training.parameters import parameters, solver_name
from spinlite.training.prompts import Asked, ask, describe_sizes, draw_prompt, play_of, settle
from spinlite.training.sheet import write_sheet

MOST = 400  # pictures in one sheet


@dataclass(frozen=True)
class SampleRequest:
    """Which pictures to make: each prompt with each seed, at each strength."""

    prompts: Sequence[Prompt]  # their own seeds, sizes and sampling go before what is said here
    negative: str
    seeds: int
    first: int  # the first seed; the others count up from it
    strengths: Sequence[float]
    play: Play


@dataclass(frozen=True)
class SampleSetup:
    """What makes the pictures: a base, sampler settings, and LoRAs by file name without ending (empty: the base alone)."""

    base: Family
    play: Play
    loras: Mapping[str, Lora]
    hashes: Mapping[str, str]  # SHA-256 of the LoRA files' data, by the same names
    model: Mapping[str, str]  # how A1111's metadata names the base model
    fps: float | None = None  # of clips; None: the base's own


def describe_idle(setup: SampleSetup) -> str:
    """Which of the LoRAs change nothing, in words; "" if all do something. The base beside rounds is meant to do nothing."""
    idle = [stem for stem, lora in setup.loras.items() if changes_nothing(lora) and (lora or len(setup.loras) == 1)]
    return f"{', '.join(idle)}: {NOTHING}; the pictures are the base model's own" if idle else ""


def describe_request(setup: SampleSetup, request: SampleRequest) -> str:
    """Which of the sizes that are asked for the model can't draw, in words; "" if it draws them all."""
    return describe_sizes(request.prompts, [settle(prompt, setup.base, request.play) for prompt in request.prompts])


def draw_samples(setup: SampleSetup, request: SampleRequest, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Make pictures with every LoRA at every strength; returns the path of the sheet.

    A seed gives the same noise as in a WebUI with CPU noise: one generator per picture. File names say what a picture shows.
    Raises SpinliteError if there would be too many pictures.
    """
    base, loras, play = setup.base, setup.loras, request.play
    rows = [(stem, strength) for stem, lora in loras.items() for strength in (request.strengths if lora else [1.0])]
    asked = _ask(base, request, len(rows))
    shown: dict[str, list[Drawn]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    done, count = 0, len(rows) * len(asked)
    for stem, strength in rows:
        label = f"{stem} at {strength:g}" if loras[stem] else stem  # the sheet's font has no ×
        latents = []
        with applied(base.net, loras[stem], strength):
            for _, each in asked:
                latents.append(draw_prompt(base, each, play)[0])
                progress(done := done + 1, count)
        shown[label] = decode_latents(base, latents, len(latents))
        lora, digest = (f"{stem}:{strength:g}", setup.hashes[stem]) if loras[stem] else ("", "")
        for (i, each), drawn in zip(asked, shown[label], strict=True):
            text = parameters(base, play_of(each.prompt, play), each.prompt, setup.model, lora, digest)
            save_drawn(folder / f"{stem}-{strength:g}-prompt{i}-seed{each.prompt.seed}", drawn, text, _fps(setup))
    base.free()
    captions = [f"{each.prompt.text} · seed {each.prompt.seed}" for _, each in asked]
    how = f"{solver_name(base, play)}, {play.steps} steps, CFG {play.guidance:g}"
    stills = {label: list(map(strip, row)) for label, row in shown.items()}
    write_sheet(folder / "sheet.png", f"{setup.model['Model']} · {how}", captions, stills)
    if any(is_clip(drawn) for row in shown.values() for drawn in row):
        write_animation(folder / "sheet.webp", shown, _fps(setup))
    return folder / "sheet.png"


def _fps(setup: SampleSetup) -> float:
    return setup.fps or (setup.base.clips.fps if setup.base.clips else 1.0)


def _ask(base: Family, request: SampleRequest, rows: int) -> list[tuple[int, Asked]]:
    """(number of its prompt, from 1, and what to draw) of each column: each prompt with each seed."""
    if (count := rows * len(request.prompts) * request.seeds) > MOST:
        raise SpinliteError(f"that would be {count} pictures", fix=f"ask for at most {MOST}, e.g. with fewer --seeds")
    columns = []
    for i, prompt in enumerate(request.prompts, 1):
        whole = prompt.model_copy(update={"negative": prompt.negative or request.negative})
        asked = ask(base, settle(whole, base, request.play))
        first = request.first if prompt.seed is None else prompt.seed
        columns += [(i, replace(asked, prompt=asked.prompt.model_copy(update={"seed": first + n})))
                    for n in range(request.seeds)]  # fmt: skip
    base.free()
    return columns


def setup_of_run(folder: Path, word: str) -> SampleSetup:
    """A run's base and sampler settings, and the LoRA of one round or "all", under the file names of `spinlite export`."""
    run = Run.open_existing(folder)
    rounds = range(len(run.events("judge")) + 1) if word == "all" else [choose_round(run, word)]
    base = load_family(run.settings.model, device.choose_device(run.memory))
    loras: dict[str, Lora] = {}
    for k in rounds:
        lora = read_snapshot(run, base, k)[0]
        loras[f"{run.name}-{k}" if k or base.start else "base"] = lora if k or base.start else {}
    files = {stem: _exported_tensors(base, lora) for stem, lora in loras.items() if lora}
    hashes = {stem: compute_hashes(tensors, {})["sshs_model_hash"] for stem, tensors in files.items()}
    return SampleSetup(base, run.settings.drawn, loras, hashes, _describe_model(run.settings.model.base), run.settings.data.fps)


def setup_of_file(path: Path, name: str, strengths: Sequence[float]) -> SampleSetup:
    """A LoRA file on a base, with default sampler settings; its part for text encoders acts on all prompts.

    Raises SpinliteError if such a file is to be used at another strength than 1.
    """
    base = load_family(Model(base=name, init_lora=str(path)), device.choose_device())
    if text_encoder_part(base.start) and list(strengths) != [1.0]:
        problem = f"{path.name} changes text encoders, so pictures can only be made at strength 1"
        raise SpinliteError(problem, fix="leave out --strength")
    digest = read_tensors(path)[1].get("sshs_model_hash") or hashlib.sha256(tensor_bytes(path.read_bytes())).hexdigest()
    return SampleSetup(base, Play(), {path.stem: base.start}, {path.stem: digest}, _describe_model(name))


def _exported_tensors(base: Family, lora: Lora) -> dict[str, Tensor]:
    """The tensors of the file that `spinlite export` writes by default."""
    return lay_out(lora, base, base.layouts[0], torch.float16)[0]


def _describe_model(base: str) -> dict[str, str]:
    """How A1111's metadata names a base model; only a single file has a hash."""
    path = Path(base).expanduser()
    if not path.is_file():
        return {"Model": path.name}
    with path.open("rb") as file:
        return {"Model hash": hashlib.file_digest(file, "sha256").hexdigest()[:10], "Model": path.stem}


def parse_numbers(text: str) -> list[float]:
    """Numbers, separated by commas, of --strength. Raises SpinliteError if they are not numbers of a sensible size."""
    try:
        return [check_strength(float(part)) for part in text.split(",")]
    except ValueError:
        raise SpinliteError(f"--strength {text!r} is not a list of numbers", fix="write e.g. --strength 0.6,0.8,1") from None
