"""Trees of tensors and numbers, such as an optimizer's state, as what a safetensors file holds; and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flatten(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A tree of dicts -> (tensors, JSON values), both by their place "a/b/c"."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            below = flatten(value, place + "/")
            tensors |= below[0]
            plain |= below[1]
        elif isinstance(value, Tensor):
            tensors[place] = value
        else:
            plain[place] = value
    return tensors, plain


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for place, value in [*tensors.items(), *plain.items()]:
        *parents, last = place.split("/")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return tree


def optimizer_tree(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as a tree, with the numbers of its groups: Prodigy's and schedule-free's states are there too."""
    found = optimizer.state_dict()
    return {
        "state": {str(i): dict(state) for i, state in found["state"].items()},
        "groups": {
            str(i): {name: value for name, value in group.items() if isinstance(value, int | float)}
            for i, group in enumerate(found["param_groups"])
        },
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> None:
    """Put back what `optimizer_tree` gave."""
    groups = [
        group | tree.get("groups", {}).get(str(i), {}) for i, group in enumerate(optimizer.state_dict()["param_groups"])
    ]
    state = {int(i): values for i, values in tree.get("state", {}).items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
