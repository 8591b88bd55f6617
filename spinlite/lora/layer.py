"""One layer of the frozen base with a LoRA in each of two slots, at the least cost.

x is (..., in) for a linear layer and (B, in, height, width) for a convolution. With W, b the base's weight and bias, A the
LoRA's down and B its up, the layer computes W x + b + scale * B A x.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinlite.memory.quantized import Quantized

Pair = tuple[Tensor, Tensor]  # A, B


class Adapted(nn.Module):
    """A linear layer or a convolution of the base, with the LoRA of the slot that is `active`; None: the base alone.

    The slots' weights are fp32, and compute in the base's precision. Where that is another one they are cast in every pass,
    or once for many passes: `ready` holds a slot's (A, B) then, beside those that are stored, `masters`. A is (rank, in, ...),
    B (out, rank, ...). Only the policy's learn.

    With `dora` each output has a magnitude m too (Liu et al. 2024, arXiv 2402.09353). The layer is then m V / |V| in place of
    V = W + scale * B A, its norms have no gradient (section 4.3), and it computes in fp32.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float, dora: bool) -> None:
        super().__init__()
        weight = base.weight
        self.base_layer, self._rank, self._scale, self._dora = base, rank, scale, dora
        self._conv, self._quantized = isinstance(base, nn.Conv2d), isinstance(base, Quantized)
        self.base_dtype = weight.dtype
        self.dtype = torch.float32 if dora else weight.dtype  # that the LoRA computes in
        self.exact = weight.dtype.itemsize >= 4 and not self._quantized  # a LoRA can be added to W
        down, up = _make_pair(base, rank)
        self.lora_A = nn.ModuleDict({"policy": down, "opponent": copy.deepcopy(down)})
        self.lora_B = nn.ModuleDict({"policy": up, "opponent": copy.deepcopy(up)})
        magnitudes = {slot: _Magnitude(weight) for slot in ("policy", "opponent")} if dora else {}
        self.lora_magnitude_vector = nn.ModuleDict(magnitudes)
        for part in (self.lora_A, self.lora_B, *[self.lora_magnitude_vector] * dora):
            part.to(weight.device).get_submodule("opponent").requires_grad_(False)
        masters: Any = {slot: (self.lora_A[slot].weight, self.lora_B[slot].weight) for slot in ("policy", "opponent")}
        self.masters: dict[str, Pair] = masters
        self.ready: dict[str, Pair] = {}
        self.active: str | None = None

    @property
    def casts(self) -> bool:
        """Whether the weights are stored in another precision than the one that they compute in."""
        return self.masters["policy"][0].dtype != self.dtype

    def forward(self, input: Tensor) -> Tensor:  # networks may name it, as that of torch's layers
        x, slot = input, self.active
        base: Any = self.base_layer
        if slot is None:
            return self._plain(x)
        if self._dora:
            return self._forward_dora(x, slot)
        down, up = self.ready.get(slot) or [weight.to(self.dtype) for weight in self.masters[slot]]
        if self.exact and self._merging_is_less_work(x.numel() // x.shape[1 if self._conv else -1], down, up):
            weight = base.weight + merged_change(down, up, self._scale)
            if self._conv:
                return F.conv2d(x, weight, base.bias, base.stride, base.padding)
            return F.linear(x, weight, base.bias)
        if self._conv:
            low = F.conv2d(x, down, None, base.stride, base.padding)
            return base(x).add_(F.conv2d(low, up), alpha=self._scale)
        rows = x.reshape(-1, x.shape[-1])
        y = base(rows)
        add = y.addmm if self._quantized else y.addmm_  # autograd forbids the latter on a `Quantized` layer's output
        return add(rows @ down.t(), up.t(), alpha=self._scale).view(*x.shape[:-1], -1)

    def _plain(self, x: Tensor) -> Tensor:
        """The base alone. A linear layer gets rows, as with a LoRA: else the same numbers may be added in another order."""
        return self.base_layer(x) if self._conv else self.base_layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    def _merging_is_less_work(self, places: int, down: Tensor, up: Tensor) -> bool:
        learns = torch.is_grad_enabled() and up.requires_grad
        return merging_is_less_work(places, down[0].numel(), len(up), self._rank, learns)

    def _forward_dora(self, x: Tensor, slot: str) -> Tensor:
        base: Any = self.base_layer
        down, up = self.masters[slot]
        magnitude: Any = self.lora_magnitude_vector[slot].weight
        with torch.no_grad():
            whole = base.weight.float() + merged_change(down, up, self._scale)
            share = whole.flatten(1).norm(dim=1).reciprocal()
        factor = magnitude.flatten() * share
        plain, x = self._plain(x), x.to(down.dtype)
        if isinstance(base, nn.Conv2d):
            change = F.conv2d(F.conv2d(x, down, None, base.stride, base.padding), up)
            factor, shape = factor.view(-1, 1, 1), (-1, 1, 1)
        else:
            change, shape = F.linear(F.linear(x, down), up), (-1,)
        bare = plain if base.bias is None else plain - base.bias.view(shape)
        return (plain + (factor - 1) * bare + factor * self._scale * change).to(plain.dtype)


def merging_is_less_work(places: int, ins: int, outs: int, rank: int, learns: bool) -> bool:
    """Whether it is less work to add B A to W than to apply A and B to x, whose `places` each hold a value per input.

    B A takes out * in products for each rank; A and B take out + in for each rank and place. A gradient, if the LoRA `learns`,
    takes twice as many again, and by way of W out * in for each place.
    """
    merging = ins * outs * rank * (3 if learns else 1) + ins * outs * places * learns
    return merging < places * rank * (ins + outs) * (3 if learns else 1)


class _Magnitude(nn.Module):
    """DoRA's magnitude of each output: the norms of the weight, (out,), or (1, out, 1, 1) for a convolution."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        norms = weight.detach().float().flatten(1).norm(dim=1)
        self.weight = nn.Parameter(norms.view(1, -1, *[1] * (weight.ndim - 2)) if weight.ndim > 2 else norms)


def _make_pair(base: nn.Linear | nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    """A slot's A, random, and its B, zero. They are fp32, of numbers that the base's precision holds, on the CPU (or meta)."""
    if isinstance(base, nn.Conv2d):
        down: Any = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)  # pyright: ignore
        up: Any = nn.Conv2d(rank, base.out_channels, 1, bias=False)
    else:
        down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    return down.to(base.weight.dtype).float(), up


def merged_change(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """scale * B A in the shape of the base's weight: (out, in) or (out, in, k, k)."""
    return scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


class Cast(torch.autograd.Function):
    """All of a slot's weights, cast in one go to the precisions of their layers; so are their gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, dtypes: Sequence[torch.dtype], *masters: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.dtypes = [master.dtype for master in masters]
        return _cast(masters, dtypes)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *_cast(slopes, ctx.dtypes)


def _cast(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    for dtype in set(dtypes):  # one call casts to one precision
        chosen = [i for i, each in enumerate(dtypes) if each == dtype]
        torch._foreach_copy_([cast[i] for i in chosen], [tensors[i] for i in chosen])
    return tuple(cast)
