"""bitsandbytes' AdamW with a state of 8 bits, for the many small weights of a LoRA.

bitsandbytes takes one weight after the other, and waits for the card after each. Here the weights lie in a row: a step is one
operation for all whose state has 8 bits, and one for the small ones, whose state has 32. What comes out is the same bit for
bit, since a scale of bitsandbytes is that of 256 numbers, and each weight begins at a multiple of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn

BLOCK = 256  # numbers with a scale in common
KEPT = ("state1", "state2", "absmax1", "absmax2")  # of a weight's state; weights of 32 bits have no absmax


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """The state of each weight is where bitsandbytes keeps it, so it is saved and loaded alike."""

    _rows: Sequence["_Row"] = ()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Change the weights by their gradients."""
        [group] = self.param_groups
        learning = [(i, weight) for i, weight in enumerate(group["params"]) if weight.grad is not None]
        for i, weight in learning:
            if not self.state[weight]:
                self.init_state(group, weight, 0, i)
        if not self.initialized:
            self.to_gpu()
            self.initialized = True
        weights = [weight for _, weight in learning]
        if len({self.state[weight]["step"] for weight in weights}) == 1:
            for row in self._in_rows(weights):
                row.step(group)
        else:  # a weight had no gradient before
            for i, weight in learning:
                self.update_step(group, weight, 0, i)

    def _in_rows(self, weights: Sequence[nn.Parameter]) -> Sequence["_Row"]:
        """These weights in rows, as they are unless one was moved since, or its state loaded."""
        if sum(len(row.weights) for row in self._rows) != len(weights) or not all(row.holds(self.state) for row in self._rows):
            large = [weight for weight in weights if "absmax1" in self.state[weight]]
            small = [weight for weight in weights if "absmax1" not in self.state[weight]]
            self._rows = [_Row(some, [self.state[weight] for weight in some]) for some in (large, small) if some]
        return self._rows


class _Row:
    """Weights in a row, and their states beside them. Weights and states become views of it."""

    def __init__(self, weights: Sequence[nn.Parameter], states: Sequence[dict[str, Any]]) -> None:
        self.weights, self._states = weights, states
        self._places = [size for weight in weights for size in (weight.numel(), -weight.numel() % BLOCK)]
        row, parts = _row(weights, self._places)
        self._all = bitsandbytes.optim.AdamW8bit([nn.Parameter(row)])
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part
        self._at = [weight.data_ptr() for weight in weights]
        first: dict[str, Any] = dict(states[0])
        for name in KEPT & first.keys():
            values = [state[name] for state in states]
            scales = name.startswith("absmax")
            places = [size for value in values for size in (value.numel(), 0)] if scales else self._places
            fill = first["qmap" + name[-1]].abs().argmin() if values[0].dtype == torch.uint8 else 0  # what stands for zero
            first[name], parts = _row(values, places, fill)
            for state, part in zip(states, parts, strict=True):
                state[name] = part
        self._all.state[self._weight] = first

    @property
    def _weight(self) -> nn.Parameter:
        return self._all.param_groups[0]["params"][0]

    def holds(self, states: Any) -> bool:
        """Whether the weights and their states are still those in the row."""
        same = all(states[weight] is state for weight, state in zip(self.weights, self._states, strict=True))
        return same and all(weight.data_ptr() == at for weight, at in zip(self.weights, self._at, strict=True))

    def step(self, group: dict[str, Any]) -> None:
        """Change the weights by their gradients, which all of them have."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        self._weight.grad, _ = _row(gradients, self._places)
        self._all.state[self._weight]["step"] = self._states[0]["step"]
        self._all.update_step(group, self._weight, 0, 0)
        self._weight.grad = None
        for state in self._states:
            state["step"] += 1


def _row(tensors: Sequence[Tensor], places: Sequence[int], fill: Any = 0) -> tuple[Tensor, list[Tensor]]:
    """The tensors in a row, and each as a view of it. `places` holds the length of each, and of what follows it."""
    row = tensors[0].new_empty(sum(places)).fill_(fill)
    parts = [part.view(tensor.shape) for part, tensor in zip(row.split(list(places))[::2], tensors, strict=True)]
    torch._foreach_copy_(parts, [tensor.detach() for tensor in tensors])
    return row, parts
