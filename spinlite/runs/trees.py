"""Nested dicts of tensors and numbers, such as an optimizer's state <-> the flat names of a safetensors file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flatten(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Nested dicts -> (tensors, JSON values), both under names such as "a/b/c"."""
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
    """An optimizer's state as nested dicts, with the numbers of its parameter groups.

    Prodigy and schedule-free keep part of their state in the groups.
    """
    saved = optimizer.state_dict()
    return {
        "state": {str(i): dict(state) for i, state in saved["state"].items()},
        "groups": {
            str(i): {name: value for name, value in group.items() if isinstance(value, int | float)}
            for i, group in enumerate(saved["param_groups"])
        },
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> None:
    """Load what `optimizer_tree` returned into an optimizer."""
    groups = [group | tree.get("groups", {}).get(str(i), {}) for i, group in enumerate(optimizer.state_dict()["param_groups"])]
    state = {int(i): values for i, values in tree.get("state", {}).items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
