"""A base model by its settings: which kind it is, and that kind's family."""

from pathlib import Path
from typing import Any

from spinlite.config.settings import Model
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Family
from spinlite.families.open import open_checkpoint
from spinlite.memory.device import Device


def load_family(model: Model, device: Device) -> Family:
    """The base model, its network on the device; "auto" reads which kind it is. Raises SpinliteError where it can't be read."""
    kind = model.family
    if kind == "auto":
        kind = "sdxl" if open_checkpoint(model.base).kind == "sdxl" else "sd"
    match kind:
        case "toy":
            from spinlite.families.toy import Toy

            made = Toy(model.base, device)
        case "sdxl":
            from spinlite.families.sdxl import StableDiffusionXL

            made = StableDiffusionXL(model.base, device, vae=model.vae, prediction=model.prediction, zero_snr=model.zero_snr)
        case _:
            from spinlite.families.sd import StableDiffusion

            made = StableDiffusion(model.base, device, vae=model.vae, prediction=model.prediction, zero_snr=model.zero_snr)
    if model.init_lora:
        made.start_from(Path(model.init_lora))
    return made


def size_and_step(model: Model) -> tuple[tuple[int, int], int]:
    """A base model's `size` and `step` in px, before it is loaded. Raises SpinliteError where it can't be read."""
    if model.family == "toy":
        from spinlite.families.toy import Toy

        return Toy.size, Toy.step
    from spinlite.families.diffusion import size_and_step_of

    return size_and_step_of(open_checkpoint(with_random_weights(model).base))


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a base model's captions, before it is loaded; None where captions have no limit."""
    if model.family == "toy":
        return None
    import torch

    return open_checkpoint(with_random_weights(model).base).load("tokenizer", torch.float32)
