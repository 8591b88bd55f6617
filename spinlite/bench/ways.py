"""Ways to learn from the same pairs: plain LoRA training, spinlite's ways, and self-play as other trainers do it."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spinlite.bench.diffusers_way import DiffusersWay
from spinlite.bench.turns import Call
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.losses import error
from spinlite.methods.dpo import DPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.training.batches import Batch
from spinlite.training.step import measure, step

SFT_WAY, ONE_GRAPH, FAST, OPPONENT_FIRST, LIVE, TWO_NETWORKS, DPO_WAY, DIFFUSERS = (
    "SFT", "SPIN, saves memory", "SPIN, fast", "opponent measured first", "SPIN, opponent in step", "SPIN, two networks",
    "DPO, base in step", "DPO, diffusers' script",
)  # fmt: skip
DESCRIPTIONS = {
    SFT_WAY: "an image, by plain LoRA training: the yardstick",
    ONE_GRAPH: "a pair, with one activation graph at a time; opponent measured first",
    FAST: "a pair, real and fake in one batch; opponent measured first",
    OPPONENT_FIRST: "measures the opponent's errors: once per pair and draw, without a graph",
    LIVE: "a pair, with one activation graph at a time; the step measures the opponent",
    TWO_NETWORKS: "a pair, as other trainers do it: a second network is the opponent",
    DPO_WAY: "a pair, real and fake in one batch; the step measures the base",
    DIFFUSERS: "the same pair as that script does it, with peft's layers; without its encoding in every step",
}


@dataclass(frozen=True)
class Ways:
    """What the ways share. The batch has fakes. `opponent` is a second network without LoRA layers (its LoRA would be merged);
    None: there is no room for it. `peer` is the same for a network with peft's layers."""

    family: Family
    slots: Slots
    optimizer: torch.optim.Optimizer
    batch: Batch
    opponent: nn.Module | None
    peer: DiffusersWay | None = None
    merge: bool = False  # whether a run would merge the opponent to measure it

    def calls(self) -> list[Call]:
        """One update by each way."""
        known = replace(self.batch, known=self.opponent_errors())
        rows = [
            (SFT_WAY, SFT(), self.batch, False), (ONE_GRAPH, SPIN(), known, True), (FAST, SPIN(), known, False),
            (LIVE, SPIN(), self.batch, True),
        ]  # fmt: skip
        calls = [
            self._call(name, lambda m=method, b=batch, one=one_graph: step(self.family, self.slots, m, b, one))
            for name, method, batch, one_graph in rows
        ]
        count, kept = len(self.batch.t), lambda: states(self.optimizer)
        merged = (lambda: self.slots.merged("opponent")) if self.merge else contextlib.nullcontext
        calls.insert(3, Call(OPPONENT_FIRST, "pair", count, self.opponent_errors, held=kept, around=merged))
        dpo = self._call(DPO_WAY, lambda: step(self.family, self.slots, DPO(), self.batch, False))
        calls.append(replace(dpo, around=self._against_base))
        if self.opponent is not None:
            calls.append(self._two_networks(self.opponent))
        if self.peer is not None:
            calls.append(self._diffusers(self.peer))
        return calls

    def _two_networks(self, net: nn.Module) -> Call:
        other = copy.copy(self.family)
        other.net = net
        row = self._call(TWO_NETWORKS, lambda: two_network_step(self.family, other, SPIN(), self.batch))
        held = lambda: [*row.held(), *weights(net)]  # noqa: E731
        return replace(row, held=held, around=lambda: self._on_device(net))

    def _diffusers(self, peer: DiffusersWay) -> Call:
        """It has a network of its own, and would not have ours."""
        held = lambda: [*states(peer.optimizer), *weights(peer.net)]  # noqa: E731
        count, around = len(self.batch.t), lambda: self._on_device(peer.net)
        return Call(DIFFUSERS, "pair", count, lambda: peer.update(self.batch), held=held, around=around)

    @contextlib.contextmanager
    def _against_base(self) -> Iterator[None]:
        """Within the block the opponent is the base, as in DPO."""
        kept = self.slots.state("opponent")
        self.slots.load("opponent", {name: value * ("lora_A" in name) for name, value in kept.items()})
        try:
            yield
        finally:
            self.slots.load("opponent", kept)

    @torch.no_grad()
    def opponent_errors(self) -> dict[str, Tensor]:
        """The opponent's errors on the batch, by name: (B,) each."""
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
    def _on_device(self, net: nn.Module) -> Iterator[None]:
        """Bring a network to the device of the batch while the block runs, and back to RAM afterwards."""
        net.to(self.batch.t.device)
        try:
            yield
        finally:
            net.to("cpu")


def two_network_step(family: Family, other: Family, method: SPIN, batch: Batch) -> Tensor:
    """Add the gradient of the mean loss to the policy, and return that loss, as other preference trainers do it.

    Real and fake are one batch. The policy's network sees it with a graph, a second network (the opponent) without one.
    """
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
    """The tensors that a network keeps in memory."""
    return [*net.parameters(), *net.buffers()]


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps in memory."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
