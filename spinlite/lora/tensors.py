"""A LoRA as tensors: a pair of matrices for each module, independent of any file layout."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """The change of one module's weight: up @ down, in fp32 on the CPU. alpha / rank is multiplied into `up`.

    down: (rank, in) or (rank, in, k, k); up: (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def change(self) -> Tensor:
        """The change of the weight, in its shape."""
        return (self.up.flatten(1) @ self.down.flatten(1)).view(self.shape)

    def times(self, factor: float) -> "Pair":
        """The change times a factor."""
        return Pair(self.down, self.up * factor)


NOTHING = "this LoRA changes nothing: all its changes are zero"
Lora = Mapping[str, Pair]  # by the full name of the module: "unet.…", "text_encoder.text_model.…"


def lora_of_snapshot(state: Mapping[str, Tensor], scale: float) -> dict[str, Pair]:
    """A snapshot (`Slots.state`) as a LoRA. DoRA's magnitudes are left out; `bake_dora` keeps them."""
    end = ".lora_A.weight"
    modules = [name.removesuffix(end) for name in state if name.endswith(end)]
    return {
        f"unet.{module}": Pair(state[module + end].float(), state[f"{module}.lora_B.weight"].float() * scale)
        for module in modules
    }


def distance(pair: Pair, other: Tensor) -> float:
    """|other - change| / |change| for the pair's change (Frobenius norms); for a zero change 1, or 0 if `other` is zero too."""
    change = pair.change
    size = change.norm()
    if size == 0:
        return float(other.norm() > 0)
    return ((other - change).norm() / size).item()


def norm(pair: Pair) -> float:
    """The Frobenius norm of the change, computed from (rank, rank) matrices instead of the change itself."""
    up, down = pair.up.flatten(1).double(), pair.down.flatten(1).double()
    return torch.einsum("ij,ji->", up.T @ up, down @ down.T).clamp_min(0).sqrt().item()


def changes_nothing(lora: Lora) -> bool:
    """Whether every change is zero: such a LoRA does nothing in any program. An empty one does nothing either."""
    return all(norm(pair) == 0 for pair in lora.values())


def describe_ranks(lora: Lora) -> str:
    """The ranks of a LoRA in words: "16" or "4 to 32"."""
    ranks = sorted({pair.rank for pair in lora.values()})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
