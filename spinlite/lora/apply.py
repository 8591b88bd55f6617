"""A LoRA on a network for the length of a block, beside the frozen weights: nothing is merged, so nothing is rounded."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from spinlite.errors import SpinliteError
from spinlite.lora.tensors import Lora, Pair

PART = "unet"  # what a network that denoises is called in a module's full name


@contextlib.contextmanager
def applied(net: nn.Module, lora: Lora, strength: float = 1.0, part: str = PART) -> Iterator[None]:
    """`net` computes with the LoRA's modules of one part, times `strength`; their share in fp32."""
    hooks = attach(net, lora, strength, part)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attach(net: nn.Module, lora: Lora, strength: float = 1.0, part: str = PART) -> list[RemovableHandle]:
    """The same until the handles are removed. Text encoders' modules are found with and without transformers' `text_model`."""
    modules = dict(net.named_modules())
    hooks = []
    for name, pair in lora.items():
        if name.startswith(f"{part}."):
            inner = name.removeprefix(f"{part}.")
            module = modules.get(inner) or modules.get(inner.removeprefix("text_model."))
            if module is None:
                raise SpinliteError(f"the base model has no {name}, which the LoRA changes", fix="use one for this base")
            hooks.append(module.register_forward_hook(_adds(pair.times(strength))))
    return hooks


def _adds(pair: Pair) -> Any:
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
