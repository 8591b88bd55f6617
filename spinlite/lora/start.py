"""A run that starts from a user's LoRA: the slots hold it exactly, whatever its ranks and modules."""

from collections.abc import Sequence

import torch
from torch import nn

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.lora.adapters import Slots
from spinlite.lora.tensors import Lora, describe_ranks


def make_slots(net: nn.Module, targets: Sequence[str], model: Model, seed: int, start: Lora) -> Slots:
    """The slots of a run. Both hold `start`, by full names; without one, both are the all-zero LoRA.

    The rank is raised to that of the file, and the file's modules learn beside the targets, so nothing of it is cut off:
    what is wider begins as the seed's A and a B of zeros. Raises SpinliteError for DoRA, whose magnitudes a plain LoRA has not.
    """
    mine = {name.removeprefix("unet."): pair for name, pair in start.items() if name.startswith("unet.")}
    if mine and model.dora:
        raise SpinliteError("a run with model.dora can't start from a LoRA", fix="set model.dora = false")
    rank = max([model.rank, *(pair.rank for pair in mine.values())])
    alpha = (model.alpha or model.rank) * rank / model.rank  # the scale that was asked for, at the wider rank
    suffixes = tuple(f".{target}" for target in targets)
    more = [module for module in mine if module not in targets and not module.endswith(suffixes)]
    slots = Slots(net, [*targets, *more], rank, alpha, seed, model.rslora, model.dora)
    state = slots.state("policy")
    for module, pair in mine.items():
        down, up = state[f"{module}.lora_A.weight"], torch.zeros_like(state[f"{module}.lora_B.weight"])
        down[: pair.rank] = pair.down.view(-1, *down.shape[1:])
        up[:, : pair.rank] = pair.up.view(-1, pair.rank, *up.shape[2:]) / slots.scale
        state |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    if mine:
        slots.load("policy", state)
        slots.load("opponent", state)
    return slots


def describe_start(start: Lora, name: str) -> str:
    """What a run starts from, in words."""
    text = sum(not module.startswith("unet.") for module in start)
    frozen = f", and {text} of the text encoders, which stay as they are" if text else ""
    return f"{name}: rank {describe_ranks(start)}, {len(start) - text} modules of the network{frozen}"
