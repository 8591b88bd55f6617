"""Pictures of a LoRA to look at: prompts x rounds x strengths x seeds, one sheet and single files that a WebUI can repeat."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.export import choose_round, read_snapshot
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.apply import applied
from spinlite.lora.layouts import complete_attention, to_kohya
from spinlite.lora.metadata import compute_hashes, tensor_bytes
from spinlite.lora.read import text_encoder_part
from spinlite.lora.tensors import Lora
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.training.play import make_scheduler, sample
from spinlite.training.sheet import write_sheet

NAMES = {  # diffusers' class -> what A1111 calls it, or Forge (DDPM); others go by their class
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DDIMScheduler": "DDIM",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "HeunDiscreteScheduler": "Heun",
    "UniPCMultistepScheduler": "UniPC",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PLMS",
    "DDPMScheduler": "DDPM",
}
OWN_TIMES = ("DDIM", "PLMS", "UniPC")  # A1111 gives these no schedule type
MOST = 400  # pictures of one sheet


@dataclass(frozen=True)
class SampleRequest:
    """What is to be drawn, each prompt with each seed."""

    prompts: Sequence[str]
    negative: str
    seeds: int
    first: int  # the first seed; the others follow it
    strengths: Sequence[float]
    play: Play


@dataclass(frozen=True)
class SampleSetup:
    """What is drawn with: a base, its way to sample, LoRAs by their files' stems (an empty one is the base), and what
    A1111 knows them by."""

    base: Family
    play: Play
    loras: Mapping[str, Lora]
    hashes: Mapping[str, str]  # of the LoRA files' data, by stem
    model: Mapping[str, str]  # A1111's words for the base model


def parameters(drawn: SampleSetup, prompt: str, asked: SampleRequest, seed: int, stem: str, strength: float) -> str:
    """What A1111 writes into its pictures, and reads to repeat one. Noise is a CPU's, which its option RNG says."""
    tag = f"<lora:{stem}:{strength:g}>" if drawn.loras[stem] else ""
    negative = [f"Negative prompt: {_plain(asked.negative)}"] if asked.negative else []
    scheduler, size = make_scheduler(drawn.base, asked.play, "cpu"), drawn.base.size
    name = solver_name(drawn.base, asked.play)
    said: dict[str, Any] = {"Steps": asked.play.steps, "Sampler": name}
    if name not in OWN_TIMES:
        said["Schedule type"] = schedule_type(scheduler.timesteps)
    said |= {"CFG scale": f"{asked.play.guidance:g}", "Seed": seed, "Size": f"{size[0]}x{size[1]}", **drawn.model}
    if asked.play.eta:
        said["Eta DDIM"] = f"{asked.play.eta:g}"
    if tag:
        said["Lora hashes"] = f"{stem}: {drawn.hashes[stem][:12]}"
    said["RNG"] = "CPU"
    words = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in said.items())
    return "\n".join([f"{_plain(prompt)} {tag}".strip(), *negative, words])


def solver_name(base: Family, play: Play) -> str:
    """What A1111 calls a sampler; where it has none of that kind, its class."""
    kind = type(make_scheduler(base, play, "cpu")).__name__
    return NAMES.get(kind, kind.removesuffix("Scheduler"))


def schedule_type(timesteps: Tensor) -> str:
    """The schedule type of A1111's that is nearest to a sampler's times of 1000: without one it would take Karras'."""
    found = timesteps.double().unique().flip(0)
    n = len(found)
    known = {
        "DDIM": torch.arange(n - 1, -1, -1) * (1000 // n) + 1.0,
        "Uniform": torch.linspace(999, 0, n),
        "SGM Uniform": torch.linspace(999, 0, n + 1)[:-1],
    }
    return min(known, key=lambda name: (known[name] - found).abs().max().item())


def _plain(prompt: str) -> str:
    """A prompt whose brackets A1111 does not read as emphasis."""
    return re.sub(r"(?<!\\)([()\[\]])", r"\\\1", " ".join(prompt.split()))


def _quoted(value: str) -> str:
    """As A1111 writes what holds its separators."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def draw_samples(drawn: SampleSetup, asked: SampleRequest, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Draw every LoRA at every strength; returns the sheet.

    A seed's noise is that of a WebUI with CPU noise: one generator for each picture. Files are named by what they show.
    """
    base, loras = drawn.base, drawn.loras
    rows = [(stem, strength) for stem, lora in loras.items() for strength in (asked.strengths if lora else [1.0])]
    columns = [(i, asked.first + n) for i in range(len(asked.prompts)) for n in range(asked.seeds)]
    if (count := len(rows) * len(columns)) > MOST:
        raise SpinliteError(f"that would be {count} pictures", fix=f"ask for fewer: {MOST} at the most")
    conds = base.encode_captions([*asked.prompts, asked.negative])
    base.free()
    shown: dict[str, list[Image.Image]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for stem, strength in rows:
        label = f"{stem} at {strength:g}" if loras[stem] else stem  # the sheet's font has no ×
        latents = []
        with applied(base.net, loras[stem], strength):
            for i, seed in columns:
                cond, empty = ({name: value[j : j + 1] for name, value in conds.items()} for j in (i, len(asked.prompts)))
                chance = torch.Generator("cpu").manual_seed(seed)
                noise = torch.randn((1, *base.latent_shape), generator=chance)
                latents.append(sample(base, noise, cond, empty, asked.play, [chance]))
                progress(done := done + 1, count)
        shown[label] = base.decode(torch.cat(latents))
        for (i, seed), picture in zip(columns, shown[label], strict=True):
            told = PngImagePlugin.PngInfo()
            told.add_itxt("parameters", parameters(drawn, asked.prompts[i], asked, seed, stem, strength))
            picture.save(folder / f"{stem}-{strength:g}-prompt{i + 1}-seed{seed}.png", pnginfo=told)
    base.free()
    captions = [f"{asked.prompts[i]} · seed {seed}" for i, seed in columns]
    how = f"{solver_name(drawn.base, asked.play)}, {asked.play.steps} steps, CFG {asked.play.guidance:g}"
    write_sheet(folder / "sheet.png", f"{drawn.model['Model']} · {how}", captions, shown)
    return folder / "sheet.png"


def setup_of_run(folder: Path, word: str) -> SampleSetup:
    """A run's base and way to sample, and the LoRA of each round asked for by the name that `spinlite export` gives it."""
    run = Run.open_existing(folder)
    rounds = range(len(run.events("judge")) + 1) if word == "all" else [choose_round(run, word)]
    base = load_family(run.settings.model, device.choose_device(run.memory))
    loras: dict[str, Lora] = {}
    for k in rounds:
        whole = read_snapshot(run, base, k)[0]
        loras[f"{run.name}-{k}" if k or base.start else "base"] = whole if k or base.start else {}
    known = {stem: compute_hashes(_exported(base, lora), {})["sshs_model_hash"] for stem, lora in loras.items() if lora}
    return SampleSetup(base, run.settings.play, loras, known, _model(run.settings.model.base))


def setup_of_file(path: Path, name: str, strengths: Sequence[float]) -> SampleSetup:
    """A base with the file's part for text encoders in its prompts, the default way to sample, the file's LoRA."""
    base = load_family(Model(base=name, init_lora=str(path)), device.choose_device())
    if text_encoder_part(base.start) and list(strengths) != [1.0]:
        problem = f"{path.name} changes text encoders, which is drawn at strength 1 alone"
        raise SpinliteError(problem, fix="leave out --strength")
    digest = read_tensors(path)[1].get("sshs_model_hash") or hashlib.sha256(tensor_bytes(path.read_bytes())).hexdigest()
    return SampleSetup(base, Play(), {path.stem: base.start}, {path.stem: digest}, _model(name))


def _exported(base: Family, lora: Lora) -> dict[str, Tensor]:
    """The tensors of the file that `spinlite export` writes by default."""
    return to_kohya(complete_attention(lora), base.export_name, torch.float16)[0]


def _model(base: str) -> dict[str, str]:
    """How A1111 names a base model; its hash is of a single file alone."""
    path = Path(base).expanduser()
    if not path.is_file():
        return {"Model": path.name}
    with path.open("rb") as file:
        return {"Model hash": hashlib.file_digest(file, "sha256").hexdigest()[:10], "Model": path.stem}


def read_prompts(given: Sequence[str]) -> list[str]:
    """The prompts of the command line; @FILE stands for the lines of a file."""
    found: list[str] = []
    for text in given:
        lines = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines() if text.startswith("@") else [text]
        found += [line.strip() for line in lines if line.strip()]
    if not found:
        raise SpinliteError("there is no prompt", fix='add --prompt "a cat", or --prompt @FILE with a prompt a line')
    return found


def parse_numbers(text: str) -> list[float]:
    """Strengths, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SpinliteError(f"--strength {text!r} is no list of numbers", fix="e.g. --strength 0.6,0.8,1") from None
