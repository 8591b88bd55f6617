"""LoRA as files: what one holds, in which layouts it is written and read, and whether it arrived whole."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One module's change, up @ down with every scale folded into `up`, fp32, CPU.

    down: (rank, in) or (rank, in, k, k); up: (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def change(self) -> Tensor:
        """The change of the weight, in its shape."""
        return (self.up.flatten(1) @ self.down.flatten(1)).view(self.shape)

    def times(self, factor: float) -> "Pair":
        """The change times a factor."""
        return Pair(self.down, self.up * factor)


Lora = Mapping[str, Pair]  # by the full name of the module: "unet.…", "text_encoder.text_model.…"


def lora_of_snapshot(state: Mapping[str, Tensor], scale: float) -> dict[str, Pair]:
    """A snapshot of the network's LoRA (`Slots.state`), without magnitudes."""
    ends = ".lora_A.weight"
    found = [name.removesuffix(ends) for name in state if name.endswith(ends)]
    return {
        f"unet.{module}": Pair(state[module + ends].float(), state[f"{module}.lora_B.weight"].float() * scale)
        for module in found
    }


def distance(mine: Pair, other: Tensor) -> float:
    """How far a weight change is from a pair's, relative to the latter (Frobenius norms)."""
    change = mine.change
    length = change.norm()
    if length == 0:
        return float(other.norm() > 0)
    return ((other - change).norm() / length).item()


def norm(pair: Pair) -> float:
    """The Frobenius norm of the change, without forming it: the Gram matrices of both factors are (rank, rank)."""
    up, down = pair.up.flatten(1).double(), pair.down.flatten(1).double()
    return torch.einsum("ij,ji->", up.T @ up, down @ down.T).clamp_min(0).sqrt().item()


def describe_ranks(lora: Lora) -> str:
    """The ranks of a LoRA, in words."""
    found = sorted({pair.rank for pair in lora.values()})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
