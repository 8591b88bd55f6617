"""DoRA -> plain LoRA. Programs disagree about DoRA's magnitudes, but all read a plain LoRA alike."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spinlite.lora.adapters import delta, module_names
from spinlite.lora.layer import Adapted
from spinlite.lora.svd import nearest_pair, total_error
from spinlite.lora.tensors import Pair

KEPT = 0.02  # a module's change may have this relative error; above it the rank is raised
WIDEST = 8  # x the trained rank at most: beyond it files grow for little gain


def bake_dora(state: Mapping[str, Tensor], scale: float, net: nn.Module) -> tuple[dict[str, Pair], float]:
    """A DoRA snapshot -> (plain pairs, their relative error over all modules). `net` holds the base's weights.

    A module's rank is doubled until its relative error is at most KEPT, up to WIDEST x the trained rank.
    """
    lora: dict[str, Pair] = {}
    errors: dict[str, float] = {}
    for module in module_names(dict(state)):
        layer: Any = net.get_submodule(module)
        weight = (layer.base_layer if isinstance(layer, Adapted) else layer).weight
        of_module = {name: t.to(weight.device) for name, t in state.items() if name.startswith(f"{module}.lora_")}
        change = delta(of_module, module, scale, weight.detach())
        rank = trained_rank = state[f"{module}.lora_A.weight"].shape[0]
        pair, error = nearest_pair(change, rank)
        while error > KEPT and rank < WIDEST * trained_rank and rank < min(change.flatten(1).shape):
            rank *= 2
            pair, error = nearest_pair(change, rank)
        lora[f"unet.{module}"], errors[f"unet.{module}"] = pair, error
    return lora, total_error(errors, lora)
