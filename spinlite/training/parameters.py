"""How a picture was made, as the text that A1111 writes into its pictures and every WebUI shows and reads back."""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spinlite.config.prompts import Prompt
from spinlite.config.settings import Play
from spinlite.families.family import Family
from spinlite.training.play import make_scheduler

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


def parameters(base: Family, play: Play, prompt: Prompt, model: Mapping[str, str], lora: str = "", digest: str = "") -> str:
    """The text of a picture. "RNG: CPU" means noise from the CPU.

    `prompt` has its size, and a seed if a WebUI can repeat the picture; steps and CFG scale are those of `play`. `lora` is the
    tag of a LoRA ("name:strength"), `digest` the SHA-256 of its file's data, and `model` how A1111 names the base.
    """
    tag = f"<lora:{lora}>" if lora else ""
    negative = [f"Negative prompt: {_escape(prompt.negative)}"] if prompt.negative else []
    name = solver_name(base, play)
    entries: dict[str, Any] = {"Steps": play.steps, "Sampler": name}
    if name not in OWN_TIMES:
        times = make_scheduler(base, play, "cpu").timesteps
        entries["Schedule type"] = "Karras" if play.spacing == "karras" else schedule_type(times)
    seed = {} if prompt.seed is None else {"Seed": prompt.seed}
    entries |= {"CFG scale": f"{play.guidance:g}", **seed, "Size": f"{prompt.width}x{prompt.height}", **model}
    if play.eta:
        entries["Eta DDIM"] = f"{play.eta:g}"
    if digest:
        entries["Lora hashes"] = f"{lora.rpartition(':')[0]}: {digest[:12]}"
    if seed:
        entries["RNG"] = "CPU"
    words = ", ".join(f"{name}: {_quote(str(value))}" for name, value in entries.items())
    return "\n".join([f"{_escape(prompt.text)} {tag}".strip(), *negative, words])


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
