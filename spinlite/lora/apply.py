"""A LoRA on a network for the length of a block, beside the frozen weights: nothing is merged, so nothing is rounded."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spinlite.lora import Lora, Pair

PART = "unet"  # what a network that denoises is called in a module's full name


@contextlib.contextmanager
def applied(net: nn.Module, lora: Lora, strength: float = 1.0, part: str = PART) -> Iterator[None]:
    """`net` computes with the LoRA's modules of one part, times `strength`; their share is computed in fp32."""
    hooks = [
        net.get_submodule(name.removeprefix(f"{part}.")).register_forward_hook(_adds(pair.times(strength)))
        for name, pair in lora.items()
        if name.startswith(f"{part}.")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
