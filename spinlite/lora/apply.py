"""Apply a LoRA to a network without merging it, so nothing is rounded. Each module's change is added to its output."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from spinlite.errors import SpinliteError
from spinlite.lora.tensors import Lora, Pair

PART = "unet"  # the first part of the full names of the denoising network's modules


@contextlib.contextmanager
def applied(net: nn.Module, lora: Lora, strength: float = 1.0, part: str = PART) -> Iterator[None]:
    """Within the block `net` computes with those modules of the LoRA that belong to `part`, in fp32 and times `strength`.

    Raises SpinliteError if the network lacks one of them.
    """
    hooks = attach(net, lora, strength, part)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attach(net: nn.Module, lora: Lora, strength: float = 1.0, part: str = PART) -> list[RemovableHandle]:
    """As `applied`, until the returned handles are removed.

    Modules of text encoders are found with and without `text_model` in their names, since transformers' versions differ.
    """
    modules = dict(net.named_modules())
    hooks = []
    for name, pair in lora.items():
        if name.startswith(f"{part}."):
            inner = name.removeprefix(f"{part}.")
            module = modules.get(inner) or modules.get(inner.removeprefix("text_model."))
            if module is None:
                problem = f"the LoRA changes {name}, which the base model does not have"
                raise SpinliteError(problem, fix="use a LoRA that was made for this kind of base model")
            hooks.append(module.register_forward_hook(_add_change(pair.times(strength))))
    return hooks


def _add_change(pair: Pair) -> Any:
    """A forward hook that adds the change's share to a module's output."""
    weights: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if x.device not in weights:
            weights[x.device] = pair.down.to(x.device), pair.up.to(x.device)
        down, up = weights[x.device]
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(module, nn.Conv2d):
                shape: Any = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
                change = functional.conv2d(functional.conv2d(x.float(), down, **shape), up)
            else:
                change = functional.linear(functional.linear(x.float(), down.flatten(1)), up.flatten(1))
        return (output.float() + change).to(output.dtype)

    return hook
