"""One update: its gradient, and what it found, which stays on the device until it is read.

Reading makes the host wait until a card has done all that it was given, and then the card waits for the host. So on a card
several updates are read at a time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spinlite.config.settings import Learn
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.memory import processes
from spinlite.memory.device import Levers
from spinlite.methods.registry import Method
from spinlite.training.batches import Batch, Errors
from spinlite.training.guards import pull
from spinlite.training.learn_state import LearnState
from spinlite.training.step import figures, step

T = TypeVar("T")
MOST_UNREAD = {"cuda": 8}  # updates that are read together, on devices that work while the host does something else
READ_SECONDS = 1.0  # where updates are long, each is read


@dataclass(frozen=True)
class Made:
    """What an update found: the loss, the errors (batch,) by name, their weight (batch,), and the method with the beta then."""

    loss: Tensor
    norm: Tensor  # of the gradient, before it was clipped
    errors: Errors
    weight: Tensor | None
    method: Method

    def figures(self, aim: float) -> dict[str, float]:
        """What the journal and the guards are told of it, beside loss and norm."""
        found = figures(self.errors)
        if aim:
            found["beta"] = getattr(self.method, "beta", 1.0)
        if "opponent_fake" in self.errors:
            found["pull"] = pull(self.method, self.errors, self.weight)
        return found


class Clipping:
    """Clips gradients to 3 x the running mean of their norms, without a look at them.

    A fixed limit would mean something else for every beta, method and model.
    """

    def __init__(self, mean: float | None, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters, device = parameters, parameters[0].device
        self._place = device if device.type in MOST_UNREAD else torch.device("cpu")  # not every device has double precision
        self._mean = torch.tensor(math.inf if mean is None else mean, dtype=torch.float64, device=self._place)

    @property
    def mean(self) -> float:
        """The running mean of what the norms were clipped to; reading it makes the host wait."""
        return self._mean.item()

    def clip(self) -> Tensor:
        """Clip the gradients that are there; returns their norm from before."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        limit = torch.where(self._mean > 0, 3 * self._mean, math.inf)
        factor = ((norm + 1e-6).reciprocal() * limit.float().to(norm.device)).clamp(max=1.0)  # as clip_grad_norm_ has it
        torch._foreach_mul_(gradients, factor)
        clipped = torch.minimum(norm.to(self._place).double(), limit)
        self._mean = torch.where(self._mean.isinf(), clipped, 0.9 * self._mean + 0.1 * clipped)
        return norm


def add_gradient(
    family: Family, slots: Slots, method: Method, batches: Sequence[Batch], levers: Levers, settings: Learn, state: LearnState,
    clipping: Clipping,
) -> Made:  # fmt: skip
    """Leave the clipped gradient of an update's mean loss on the policy's LoRA. There is one batch for each shape.

    An automatic beta changes from update to update. The loss is divided by it, so that gradients keep their size.
    """
    now = state.method(method, settings.aim)
    beta = getattr(now, "beta", 1.0) if settings.aim else 1.0

    def add_own() -> tuple[Tensor, list[Errors], list[Tensor]]:
        losses, of_batches, weights = [torch.zeros((), device=batches[0].t.device)], [], []
        for batch in (batch.share(processes.number(), processes.count()) for batch in batches):
            if len(batch.t):  # each counts by its share of the update's pictures
                share = len(batch.t) / settings.batch
                part, errors = step(family, slots, now, batch, levers.one_graph, levers.micro_batch, share / beta)
                losses.append(part)
                of_batches.append(errors)
                if batch.weight is not None:
                    weights.append(batch.weight)
        found = torch.stack(losses).sum(), of_batches, weights
        return to_cpu(found) if processes.count() > 1 else found

    found = processes.gather(add_own)
    processes.sum_gradients(slots.parameters())
    loss = torch.stack([part for part, _, _ in found]).sum()
    of_batches = [errors for _, each, _ in found for errors in each]
    errors = {name: torch.cat([each[name] for each in of_batches]) for name in of_batches[0]}
    weights = [weight for _, _, each in found for weight in each]
    return Made(loss * beta, clipping.clip(), errors, torch.cat(weights) if weights else None, now)


class Unread:
    """Updates whose figures have not been read yet, in their order."""

    def __init__(self, device: torch.device, aim: float) -> None:
        """`aim`: the next update's beta depends on this one's figures."""
        together = not aim and processes.count() == 1
        self._most = MOST_UNREAD.get(device.type, 1) if together else 1
        self._made: list[Made] = []
        self._read_at = time.monotonic() + READ_SECONDS

    def add(self, made: Made) -> None:
        """Add the latest update."""
        self._made.append(made)

    def due(self, soonest: int) -> bool:
        """Whether it is time to read. `soonest`: after so many updates the round may be won."""
        return len(self._made) >= min(self._most, soonest) or time.monotonic() >= self._read_at

    def read(self) -> list[Made]:
        """The updates, on the CPU, in one transfer."""
        made, self._made = self._made, []
        rows = to_cpu([(m.loss, m.norm.to(m.loss.device), m.errors, [] if m.weight is None else [m.weight]) for m in made])
        self._read_at = time.monotonic() + READ_SECONDS
        return [
            replace(m, loss=loss, norm=norm, errors=errors, weight=weight[0] if weight else None)
            for m, (loss, norm, errors, weight) in zip(made, rows, strict=True)
        ]


def to_cpu(tree: T) -> T:
    """A tree of tensors on the CPU, in one transfer: each one makes the host wait for the device."""
    leaves, kind = tree_flatten(tree)
    rows = torch.cat([leaf.flatten() for leaf in leaves]).cpu().split([leaf.numel() for leaf in leaves])
    return tree_unflatten([row.view_as(leaf) for row, leaf in zip(rows, leaves, strict=True)], kind)
