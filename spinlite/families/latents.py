"""How a VAE's latents become those that a network learns on, and back. Each kind of base model has its own way.

z is what the VAE encodes to and decodes from, x is what the network sees; both (B, C, ...) in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Normaliser(Protocol):
    """The two directions. `patch` is how many numbers of z lie side by side in one place of x, along one side."""

    @property
    def patch(self) -> int: ...

    def normalise(self, z: Tensor) -> Tensor: ...

    def restore(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Scaled:
    """x = (z - shift) scale: SD and SDXL (without a shift), SD 3, FLUX.1, Z-Image."""

    scale: float
    shift: float = 0.0
    patch: int = 1

    def normalise(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale if self.shift else z * self.scale

    def restore(self, x: Tensor) -> Tensor:
        return x / self.scale + self.shift if self.shift else x / self.scale


class PerChannel:
    """x = (z - mean) / deviation for each channel: Wan, Qwen-Image, Anima."""

    patch = 1

    def __init__(self, mean: Sequence[float] | Tensor, deviation: Sequence[float] | Tensor) -> None:
        self._mean, self._deviation = (torch.as_tensor(each).float() for each in (mean, deviation))

    def normalise(self, z: Tensor) -> Tensor:
        return (z - _wide(self._mean, z)) / _wide(self._deviation, z)

    def restore(self, x: Tensor) -> Tensor:
        return x * _wide(self._deviation, x) + _wide(self._mean, x)


class Patched(PerChannel):
    """Squares of 2 x 2 numbers become four channels each, which are normalised: FLUX.2. (B, C, h, w) <-> (B, 4 C, h/2, w/2)."""

    patch = 2

    def normalise(self, z: Tensor) -> Tensor:
        return super().normalise(torch.nn.functional.pixel_unshuffle(z, 2))

    def restore(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(super().restore(x), 2)


def scaling_of(vae: Any) -> Scaled:
    """As the VAE's own settings say, with shift_factor if it has one."""
    return Scaled(vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).view(1, -1, *[1] * (like.ndim - 2))
