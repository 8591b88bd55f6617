"""DoRA -> plain LoRA: programs read magnitudes in ways that differ, a low-rank change all read alike."""

from collections.abc import Mapping

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from spinlite.lora.adapters import delta, module_names
from spinlite.lora.svd import nearest_pair, total_error
from spinlite.lora.tensors import Pair

KEPT = 0.02  # relative error of a module's change that is worth a lower rank
WIDEST = 8  # x the rank that was trained: above, files grow large for little


def bake_dora(state: Mapping[str, Tensor], scale: float, net: nn.Module) -> tuple[dict[str, Pair], float]:
    """(plain pairs for a DoRA snapshot, their relative error over all modules); `net` holds the base's weights.

    A module's rank is doubled until its change is kept, up to WIDEST x the trained one.
    """
    lora: dict[str, Pair] = {}
    errors: dict[str, float] = {}
    for module in module_names(dict(state)):
        layer = net.get_submodule(module)
        weight = dequantize_module_weight(layer)
        where = weight.device
        here = {name: t.to(where) for name, t in state.items() if name.startswith(f"{module}.lora_")}
        change = delta(here, module, scale, weight.detach())
        rank = first = state[f"{module}.lora_A.weight"].shape[0]
        pair, off = nearest_pair(change, rank)
        while off > KEPT and rank < WIDEST * first and rank < min(change.flatten(1).shape):
            rank *= 2
            pair, off = nearest_pair(change, rank)
        lora[f"unet.{module}"], errors[f"unet.{module}"] = pair, off
    return lora, total_error(errors, lora)
