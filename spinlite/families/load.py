"""From [model] settings to a family: finds out which kind of base model it is, and loads it."""

from pathlib import Path
from typing import Any

from spinlite.config.settings import Model
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Family
from spinlite.families.open import open_checkpoint
from spinlite.memory.device import Device


def load_family(model: Model, device: Device) -> Family:
    """Load the base model, with its network on the device. Raises SpinliteError if it can't be read."""
    kind = model.family
    if kind == "auto":
        kind = "sdxl" if open_checkpoint(model.base).kind == "sdxl" else "sd"
    match kind:
        case "toy":
            from spinlite.families.toy import Toy

            family = Toy(model.base, device)
        case "sdxl":
            from spinlite.families.sdxl import StableDiffusionXL

            family = StableDiffusionXL(model, device)
        case _:
            from spinlite.families.sd import StableDiffusion

            family = StableDiffusion(model, device)
    if model.init_lora:
        family.start_from(Path(model.init_lora))
    return family


def require_base(model: Model) -> None:
    """Raises SpinliteError at once if the base can't be reached, or is nothing to train on. Its weights are not loaded yet."""
    if model.family == "toy":
        return
    from spinlite.families.diffusion import size_and_step_of
    from spinlite.families.schedule import resolve_prediction

    checkpoint = open_checkpoint(model.base)
    resolve_prediction(checkpoint, model.prediction, model.zero_snr)
    size_and_step_of(checkpoint, model.resolution)


def size_and_step(model: Model) -> tuple[tuple[int, int], int]:
    """A base model's `Family.size` and `Family.step` in px, without loading it.

    Raises SpinliteError if it can't be read, or if it can't have that model.resolution.
    """
    if model.family == "toy":
        from spinlite.families.toy import Toy

        return Toy.size, Toy.step
    from spinlite.families.diffusion import size_and_step_of

    return size_and_step_of(open_checkpoint(with_random_weights(model).base), model.resolution)


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a base model, without loading the model; None if its captions have no limit."""
    if model.family == "toy":
        return None
    import torch

    return open_checkpoint(with_random_weights(model).base).load("tokenizer", torch.float32)
