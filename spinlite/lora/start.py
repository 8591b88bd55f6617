"""Start a run from scratch or from a user's LoRA. The slots hold that LoRA exactly, whatever its ranks and modules are."""

from collections.abc import Sequence

import torch
from torch import nn

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.lora.adapters import Slots
from spinlite.lora.tensors import NOTHING, Lora, changes_nothing, describe_ranks


def make_slots(net: nn.Module, targets: Sequence[str], model: Model, seed: int, start: Lora) -> Slots:
    """The slots of a run. Policy and opponent both begin as `start` (full name -> change); {} is the all-zero LoRA.

    Nothing of the file is cut off. The rank is raised to the file's if that is higher, and modules of the file that are not
    among the targets learn too. Rows of a module above the file's rank begin as usual: A random from the seed, B zero.
    Raises SpinliteError for a run with DoRA, because a plain LoRA has no magnitudes to start from.
    """
    given = {name.removeprefix("unet."): pair for name, pair in start.items() if name.startswith("unet.")}
    if given and model.dora:
        raise SpinliteError("a run with model.dora = true can't start from a LoRA", fix="set model.dora = false")
    rank = max([model.rank, *(pair.rank for pair in given.values())])
    alpha = (model.alpha or model.rank) * (rank / model.rank) ** (0.5 if model.rslora else 1)  # keeps the scale of the settings
    suffixes = tuple(f".{target}" for target in targets)
    more = [module for module in given if module not in targets and not module.endswith(suffixes)]
    slots = Slots(net, [*targets, *more], rank, alpha, seed, model.rslora, model.dora)
    state = slots.state("policy")
    for module, pair in given.items():
        down, up = state[f"{module}.lora_A.weight"], torch.zeros_like(state[f"{module}.lora_B.weight"])
        down[: pair.rank] = pair.down.view(-1, *down.shape[1:])
        up[:, : pair.rank] = pair.up.view(-1, pair.rank, *up.shape[2:]) / slots.scale
        state |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    if given:
        slots.load("policy", state)
        slots.load("opponent", state)
    return slots


def describe_start(start: Lora, name: str) -> str:
    """The LoRA that a run starts from, in words."""
    text = sum(not module.startswith("unet.") for module in start)
    frozen = f", and {text} of the text encoders, which are used but not trained" if text else ""
    idle = f"; {NOTHING}" if changes_nothing(start) else ""
    return f"{name}: rank {describe_ranks(start)}, {len(start) - text} modules of the network{frozen}{idle}"
