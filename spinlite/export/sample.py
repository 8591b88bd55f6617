"""Test pictures of a LoRA: prompts x rounds x strengths x seeds, as one sheet and as files that a WebUI can reproduce."""

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
from spinlite.export.export import check_strength, choose_round, read_snapshot
from spinlite.export.write import lay_out
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.apply import applied
from spinlite.lora.metadata import compute_hashes, tensor_bytes
from spinlite.lora.read import text_encoder_part
from spinlite.lora.tensors import NOTHING, Lora, changes_nothing
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.training.play import make_scheduler, sample
from spinlite.training.sheet import write_sheet

NAMES = {  # diffusers' class -> its name in A1111, or in Forge (DDPM); others keep their class name
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
OWN_TIMES = ("DDIM", "PLMS", "UniPC")  # samplers without a schedule type in A1111
MOST = 400  # pictures in one sheet


@dataclass(frozen=True)
class SampleRequest:
    """Which pictures to make: each prompt with each seed, at each strength."""

    prompts: Sequence[str]
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


def describe_idle(setup: SampleSetup) -> str:
    """Which of the LoRAs change nothing, in words; "" if all do something. The base beside rounds is meant to do nothing."""
    idle = [stem for stem, lora in setup.loras.items() if changes_nothing(lora) and (lora or len(setup.loras) == 1)]
    return f"{', '.join(idle)}: {NOTHING}; the pictures are the base model's own" if idle else ""


def parameters(setup: SampleSetup, prompt: str, request: SampleRequest, seed: int, stem: str, strength: float) -> str:
    """The text that A1111 writes into its pictures, and reads to reproduce one. "RNG: CPU" means noise from the CPU."""
    tag = f"<lora:{stem}:{strength:g}>" if setup.loras[stem] else ""
    negative = [f"Negative prompt: {_escape(request.negative)}"] if request.negative else []
    scheduler, size = make_scheduler(setup.base, request.play, "cpu"), setup.base.size
    name = solver_name(setup.base, request.play)
    entries: dict[str, Any] = {"Steps": request.play.steps, "Sampler": name}
    if name not in OWN_TIMES:
        entries["Schedule type"] = "Karras" if request.play.spacing == "karras" else schedule_type(scheduler.timesteps)
    entries |= {"CFG scale": f"{request.play.guidance:g}", "Seed": seed, "Size": f"{size[0]}x{size[1]}", **setup.model}
    if request.play.eta:
        entries["Eta DDIM"] = f"{request.play.eta:g}"
    if tag:
        entries["Lora hashes"] = f"{stem}: {setup.hashes[stem][:12]}"
    entries["RNG"] = "CPU"
    words = ", ".join(f"{name}: {_quote(str(value))}" for name, value in entries.items())
    return "\n".join([f"{_escape(prompt)} {tag}".strip(), *negative, words])


def solver_name(base: Family, play: Play) -> str:
    """The name of the sampler in A1111; its class name if A1111 has no such sampler."""
    kind = type(make_scheduler(base, play, "cpu")).__name__
    return NAMES.get(kind, kind.removesuffix("Scheduler"))


def schedule_type(timesteps: Tensor) -> str:
    """The schedule type of A1111 that is nearest to a sampler's timesteps (0 to 999). Without one A1111 may take Karras."""
    times = timesteps.double().unique().flip(0)
    n = len(times)
    known = {
        "DDIM": torch.arange(n - 1, -1, -1) * (1000 // n) + 1.0,
        "Uniform": torch.linspace(999, 0, n),
        "SGM Uniform": torch.linspace(999, 0, n + 1)[:-1],
    }
    return min(known, key=lambda name: (known[name] - times).abs().max().item())


def _escape(prompt: str) -> str:
    """A prompt that A1111 reads as the same plain text.

    Brackets would be emphasis, a backslash an escape, `#` at the start a comment, BREAK and AND parts of its language (text
    encoders see small letters only), and <name:…> a LoRA or the like.
    """
    text = re.sub(r"([\\()\[\]])", r"\\\1", " ".join(prompt.split()))
    text = re.sub(r"\b(?:BREAK|AND)\b", lambda word: word[0].lower(), text)
    return re.sub(r"^#", r"\\#", re.sub(r"<(?=\w+:)", "< ", text))


def _quote(value: str) -> str:
    """Quote a value with separators in it, as A1111 does."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def draw_samples(setup: SampleSetup, request: SampleRequest, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Make pictures with every LoRA at every strength; returns the path of the sheet.

    A seed gives the same noise as in a WebUI with CPU noise: one generator per picture. File names say what a picture shows.
    Raises SpinliteError if there would be too many pictures.
    """
    base, loras = setup.base, setup.loras
    rows = [(stem, strength) for stem, lora in loras.items() for strength in (request.strengths if lora else [1.0])]
    columns = [(i, request.first + n) for i in range(len(request.prompts)) for n in range(request.seeds)]
    if (count := len(rows) * len(columns)) > MOST:
        raise SpinliteError(f"that would be {count} pictures", fix=f"ask for at most {MOST}, e.g. with fewer --seeds")
    texts = [*request.prompts, request.negative]
    conds = base.encode_captions(texts, base.count_chunks(texts))
    base.free()
    shown: dict[str, list[Image.Image]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for stem, strength in rows:
        label = f"{stem} at {strength:g}" if loras[stem] else stem  # the sheet's font has no ×
        latents = []
        with applied(base.net, loras[stem], strength):
            for i, seed in columns:
                cond, empty = ({name: value[j : j + 1] for name, value in conds.items()} for j in (i, len(request.prompts)))
                generator = torch.Generator("cpu").manual_seed(seed)
                noise = torch.randn((1, *base.latent_shape), generator=generator)
                latents.append(sample(base, noise, cond, empty, request.play, [generator]))
                progress(done := done + 1, count)
        shown[label] = base.decode(torch.cat(latents))
        for (i, seed), picture in zip(columns, shown[label], strict=True):
            info = PngImagePlugin.PngInfo()
            info.add_itxt("parameters", parameters(setup, request.prompts[i], request, seed, stem, strength))
            picture.save(folder / f"{stem}-{strength:g}-prompt{i + 1}-seed{seed}.png", pnginfo=info)
    base.free()
    captions = [f"{request.prompts[i]} · seed {seed}" for i, seed in columns]
    how = f"{solver_name(base, request.play)}, {request.play.steps} steps, CFG {request.play.guidance:g}"
    write_sheet(folder / "sheet.png", f"{setup.model['Model']} · {how}", captions, shown)
    return folder / "sheet.png"


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
    return SampleSetup(base, run.settings.play, loras, hashes, _describe_model(run.settings.model.base))


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


def read_prompts(given: Sequence[str]) -> list[str]:
    """The prompts of the command line; @FILE stands for the lines of a file.

    Raises SpinliteError if there are none, or a file can't be read.
    """
    prompts: list[str] = []
    for text in given:
        lines = _read_lines(Path(text[1:]).expanduser()) if text.startswith("@") else [text]
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise SpinliteError("there is no prompt", fix='add --prompt "a cat", or --prompt @FILE with a prompt per line')
    return prompts


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"can't read the prompts of {path}: {error.strerror or error}"
        raise SpinliteError(problem, fix="check the name after @") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark passes as UTF-8
        raise SpinliteError(f"{path} is not UTF-8 (UTF-16?)", fix="save it as UTF-8: in Windows' Notepad, Save as, Encoding")
    return text.splitlines()


def parse_numbers(text: str) -> list[float]:
    """Numbers, separated by commas, of --strength. Raises SpinliteError if they are not numbers of a sensible size."""
    try:
        return [check_strength(float(part)) for part in text.split(",")]
    except ValueError:
        raise SpinliteError(f"--strength {text!r} is not a list of numbers", fix="write e.g. --strength 0.6,0.8,1") from None
