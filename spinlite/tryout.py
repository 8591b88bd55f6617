"""Pictures of a LoRA to look at: prompts x rounds x strengths x seeds, one sheet and single files that a WebUI can repeat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from spinlite import device
from spinlite.config import Model, Play
from spinlite.errors import SpinliteError
from spinlite.evaluate.sheet import sheet
from spinlite.export import choose, snapshot
from spinlite.families import Family, family
from spinlite.lora import Lora
from spinlite.lora.apply import applied
from spinlite.lora.read import text_part
from spinlite.play import sample
from spinlite.run import Run

NAMES = {"dpm++": "DPM++ 2M", "ddim": "DDIM", "euler": "Euler"}  # what A1111 calls them
MOST = 400  # pictures of one sheet


@dataclass(frozen=True)
class Asked:
    """What is to be drawn, each prompt with each seed."""

    prompts: Sequence[str]
    negative: str
    seeds: int
    first: int  # the first seed; the others follow it
    strengths: Sequence[float]
    play: Play


def parameters(prompt: str, asked: Asked, seed: int, size: tuple[int, int], tag: str) -> str:
    """What A1111 writes into its pictures, and reads to repeat one. Noise is a CPU's, which its option RNG says."""
    lines = [f"{prompt} {tag}".strip(), *([f"Negative prompt: {asked.negative}"] if asked.negative else [])]
    said = {
        "Steps": asked.play.steps, "Sampler": NAMES[asked.play.sampler], "CFG scale": f"{asked.play.guidance:g}",
        "Seed": seed, "Size": f"{size[0]}x{size[1]}", "RNG": "CPU",
    }  # fmt: skip
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in said.items())])


def draw(base: Family, loras: Mapping[str, Lora], asked: Asked, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Draw every LoRA, by its file's stem, at every strength; returns the sheet. An empty one is the base.

    A seed's noise is that of a WebUI with CPU noise: one generator for each picture. Files are named by what they show.
    """
    rows = [(stem, strength) for stem, lora in loras.items() for strength in (asked.strengths if lora else [1.0])]
    columns = [(i, asked.first + n) for i in range(len(asked.prompts)) for n in range(asked.seeds)]
    if (count := len(rows) * len(columns)) > MOST:
        raise SpinliteError(f"that would be {count} pictures", fix=f"ask for fewer: {MOST} at the most")
    conds = base.prompt([*asked.prompts, asked.negative])
    base.free()
    shown: dict[str, list[Image.Image]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for done, (stem, strength) in enumerate(rows):
        tag = f"<lora:{stem}:{strength:g}>" if loras[stem] else ""
        label = f"{stem} at {strength:g}" if tag else stem  # the sheet's font has no ×
        with applied(base.net, loras[stem], strength):
            latents = torch.cat([x for x in _latents(base, conds, columns, asked)])
        shown[label] = base.decode(latents)
        for (i, seed), picture in zip(columns, shown[label], strict=True):
            told = PngImagePlugin.PngInfo()
            told.add_itxt("parameters", parameters(asked.prompts[i], asked, seed, base.size, tag))
            picture.save(folder / f"{stem}-{strength:g}-prompt{i + 1}-seed{seed}.png", pnginfo=told)
        progress(done + 1, len(rows))
    base.free()
    captions = [f"{asked.prompts[i]} · seed {seed}" for i, seed in columns]
    sheet(folder / "sheet.png", f"{folder.name} · CFG {asked.play.guidance:g}, {asked.play.steps} steps", captions, shown)
    return folder / "sheet.png"


def _latents(
    base: Family, conds: Mapping[str, torch.Tensor], columns: Sequence[tuple[int, int]], asked: Asked
) -> Iterator[torch.Tensor]:
    for i, seed in columns:
        noise = torch.randn((1, *base.latent_shape), generator=torch.Generator("cpu").manual_seed(seed))
        cond, empty = ({name: value[j : j + 1] for name, value in conds.items()} for j in (i, len(asked.prompts)))
        yield sample(base, noise, cond, empty, asked.play)


def of_run(folder: Path, word: str) -> tuple[Family, Play, dict[str, Lora]]:
    """(base, the run's way to sample, the LoRA of each round asked for by the name that `spinlite export` gives it)."""
    run = Run.found(folder)
    rounds = range(len(run.events("judge")) + 1) if word == "all" else [choose(run, word)]
    base = family(run.settings.model, device.choose(run.settings.memory))
    loras: dict[str, Lora] = {}
    for k in rounds:
        whole = snapshot(run, base, k)[0]
        loras[f"{run.name}-{k}" if k or base.start else "base"] = whole if k or base.start else {}
    return base, run.settings.play, loras


def of_file(path: Path, name: str, strengths: Sequence[float]) -> tuple[Family, Play, dict[str, Lora]]:
    """(base with the file's part for text encoders in its prompts, the default way to sample, the file's LoRA)."""
    base = family(Model(base=name, init_lora=str(path)), device.choose())
    if text_part(base.start) and list(strengths) != [1.0]:
        problem = f"{path.name} changes text encoders, which is drawn at strength 1 alone"
        raise SpinliteError(problem, fix="leave out --strength")
    return base, Play(), {path.stem: base.start}


def prompts(given: Sequence[str]) -> list[str]:
    """The prompts of the command line; @FILE stands for the lines of a file."""
    found: list[str] = []
    for text in given:
        lines = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines() if text.startswith("@") else [text]
        found += [line.strip() for line in lines if line.strip()]
    if not found:
        raise SpinliteError("there is no prompt", fix='add --prompt "a cat", or --prompt @FILE with a prompt a line')
    return found


def numbers(text: str) -> list[float]:
    """Strengths, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SpinliteError(f"--strength {text!r} is no list of numbers", fix="e.g. --strength 0.6,0.8,1") from None
