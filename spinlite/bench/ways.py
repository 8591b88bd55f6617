"""Ways to learn from the same pairs: plain fine-tuning, spinlite's ways, and self-play as it is done elsewhere."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spinlite.bench.turns import Call
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.losses import error
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.training.batches import Batch
from spinlite.training.step import measure, step

SFT_WAY, ONE_GRAPH, AT_ONCE, AHEAD, LIVE, PLAIN = (
    "SFT", "SPIN, one graph", "SPIN, at once", "opponent ahead", "SPIN, live", "the plain way"
)  # fmt: skip
WORDS = {
    SFT_WAY: "an image: plain LoRA training, the yardstick",
    ONE_GRAPH: "a pair, one activation graph at a time, the opponent's errors known",
    AT_ONCE: "a pair, both graphs at once, the opponent's errors known",
    AHEAD: "what makes them known: once a pair and draw, without a graph",
    LIVE: "a pair, one graph at a time, the opponent measured in the step",
    PLAIN: "a pair as preference trainers do it: a second UNet for the opponent, both at once, in the step",
}


@dataclass(frozen=True)
class Ways:
    """What the ways share. The batch has fakes. `opponent` is the network without LoRA, as one that the opponent's is merged
    into; None: there is no room for it."""

    family: Family
    slots: Slots
    optimizer: torch.optim.Optimizer
    batch: Batch
    opponent: nn.Module | None

    def calls(self) -> list[Call]:
        """One update by each way."""
        known = replace(self.batch, known=self.ahead())
        rows = [
            (SFT_WAY, SFT(), self.batch, False), (ONE_GRAPH, SPIN(), known, True), (AT_ONCE, SPIN(), known, False),
            (LIVE, SPIN(), self.batch, True),
        ]  # fmt: skip
        calls = [
            self._call(name, lambda m=method, b=batch, one=one_graph: step(self.family, self.slots, m, b, one))
            for name, method, batch, one_graph in rows
        ]
        calls.insert(3, Call(AHEAD, "pair", len(self.batch.t), self.ahead, held=lambda: states(self.optimizer)))
        if self.opponent is None:
            return calls
        other = copy.copy(self.family)
        other.net = self.opponent
        plain = self._call(PLAIN, lambda: plain_step(self.family, other, SPIN(), self.batch))
        held = lambda: [*plain.held(), *weights(other.net)]  # noqa: E731
        return [*calls, replace(plain, held=held, around=lambda: self._there(other.net))]

    @torch.no_grad()
    def ahead(self) -> dict[str, Tensor]:
        """The opponent's errors of the batch."""
        return {name: measure(self.family, self.slots, name, self.batch) for name in ("opponent_real", "opponent_fake")}

    def _call(self, name: str, add_gradient: Callable[[], object]) -> Call:
        def update() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            add_gradient()
            nn.utils.clip_grad_norm_(self.slots.parameters(), 1.0)
            self.optimizer.step()

        unit = "image" if name == SFT_WAY else "pair"
        return Call(name, unit, len(self.batch.t), update, held=lambda: states(self.optimizer))

    @contextlib.contextmanager
    def _there(self, net: nn.Module) -> Iterator[None]:
        """A network on the batch's device for the length of the block, and in the computer's memory otherwise."""
        net.to(self.batch.t.device)
        try:
            yield
        finally:
            net.to("cpu")


def plain_step(family: Family, other: Family, method: SPIN, batch: Batch) -> Tensor:
    """Add the gradient of the mean loss to the policy's, and return that loss, as preference trainers do it: real and fake are
    one batch, which the policy's network sees with a graph and a second network, the opponent's, without."""
    assert batch.fake is not None
    x0, eps, t = torch.cat([batch.real, batch.fake]), torch.cat([batch.eps] * 2), torch.cat([batch.t] * 2)
    cond = {name: torch.cat([value] * 2) for name, value in batch.cond.items()}
    x_t, target = family.path.noise(x0, eps, t), family.path.target(x0, eps, t)
    policy_real, policy_fake = error(family.denoise(x_t, t, cond), target).chunk(2)
    with torch.no_grad():
        opponent_real, opponent_fake = error(other.denoise(x_t, t, cond), target).chunk(2)
    loss = method.loss(policy_real, policy_fake, opponent_real, opponent_fake).mean()
    loss.backward()
    return loss.detach()


def weights(net: nn.Module) -> list[Tensor]:
    """What a network keeps in memory."""
    return [*net.parameters(), *net.buffers()]


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer keeps in memory."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
