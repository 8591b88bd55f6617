"""The one training step and the one loop, for every method."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from spinlite.adapters import Slots
from spinlite.config import Learn
from spinlite.data import Encoded, Record, shows
from spinlite.device import Levers
from spinlite.fallback import Fallback
from spinlite.families import Cond, Family
from spinlite.maths.draws import draw, generator, order
from spinlite.maths.losses import TIE, error
from spinlite.methods import Method

Errors = dict[str, Tensor]  # by name: {policy, opponent, base}_{real, fake} -> (B,)


@dataclass(frozen=True)
class Batch:
    """Samples with their draws, on the device. real, fake, eps: (B, ...); t: (B,). fake is None where nobody asks for it.

    known: errors of these draws that were measured ahead, (B,) each; the step measures the others.
    """

    real: Tensor
    fake: Tensor | None
    eps: Tensor
    t: Tensor
    cond: Cond
    known: Errors = field(default_factory=dict)

    def parts(self, size: int) -> "Iterator[Batch]":
        """The batch in runs of `size` samples, the last one shorter where it does not divide."""
        for start in range(0, len(self.t), size):
            cut = slice(start, start + size)
            yield Batch(
                self.real[cut], None if self.fake is None else self.fake[cut], self.eps[cut], self.t[cut],
                {name: value[cut] for name, value in self.cond.items()},
                {name: value[cut] for name, value in self.known.items()},
            )  # fmt: skip


def measure(family: Family, slots: Slots, name: str, batch: Batch) -> Tensor:
    """The denoising error called `name`, e.g. "opponent_fake": (B,), fp32. The draw is the same for all of them."""
    who, _, side = name.partition("_")
    x0 = batch.real if side == "real" else batch.fake
    assert x0 is not None, f"{name} was asked for without fakes"
    x_t = family.path.noise(x0, batch.eps, batch.t)
    with slots.use(who):  # pyright: ignore[reportArgumentType]
        return error(family.denoise(x_t, batch.t, batch.cond), family.path.target(x0, batch.eps, batch.t))


def asked(method: Method) -> list[str]:
    """The names of the errors a method's loss is made of, the policy's last."""
    return sorted(inspect.signature(method.loss).parameters, key=lambda name: name.startswith("policy"))


def step(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, micro_batch: int | None = None
) -> tuple[Tensor, Errors]:
    """Add the gradient of the mean loss to the policy's; returns (mean loss, errors (B,) by name), detached.

    With `micro_batch` so many samples go through the network at once, and gradients add up: a method's loss is a number
    for each sample, so that the mean over the batch is the mean of its parts' means, each weighed by its share.
    """
    done = [
        _part(family, slots, method, part, one_graph, len(part.t) / len(batch.t))
        for part in batch.parts(micro_batch or len(batch.t))
    ]
    errors = {name: torch.cat([found[name] for _, found in done]) for name in done[0][1]}
    return torch.stack([loss for loss, _ in done]).sum(), errors


def _part(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, share: float
) -> tuple[Tensor, Errors]:
    """The step on samples that go through the network at once; their mean loss counts `share`.

    With `one_graph` one activation graph is alive at a time: the loss sees only errors, so its slope at each error is
    found without the network, and every policy error is then driven back by its own slope, in a graph of its own. The
    one measured last keeps its first graph; each other costs one more forward. The gradient is the same.
    """
    names = asked(method)
    mine = [name for name in names if name.startswith("policy")]
    graphs: Errors = {}
    for name in names:
        keep = name in mine and (not one_graph or name == mine[-1])
        with torch.set_grad_enabled(keep):
            graphs[name] = batch.known[name] if name in batch.known else measure(family, slots, name, batch)
    errors = {name: value.detach().requires_grad_(name in mine) for name, value in graphs.items()}
    loss = method.loss(**errors).mean() * share
    loss.backward()
    for name in reversed(mine):
        again = partial(measure, family, slots, name, batch)
        slots.backward(graphs.pop(name), errors[name].grad, batch.real[0].numel(), again)
    return loss.detach(), {name: value.detach() for name, value in errors.items()}


def figures(errors: Mapping[str, Tensor]) -> dict[str, float]:
    """What the journal keeps of a batch of errors: their means, and margin, accuracy and gate rate where they exist.

    accuracy: share of pairs with a margin > 0. gate_rate: share of samples whose real error has grown against the
    opponent's, where SePPO's gate would act.
    """
    found = {name: value.mean().item() for name, value in errors.items()}
    if "opponent_real" in errors and "policy_real" in errors:
        gain_real = errors["opponent_real"] - errors["policy_real"]
        found["gate_rate"] = (gain_real < -TIE * errors["opponent_real"]).float().mean().item()
        if "opponent_fake" in errors:
            margin = gain_real - (errors["opponent_fake"] - errors["policy_fake"])
            found["margin"] = margin.mean().item()
            found["accuracy"] = (margin > 0).float().mean().item()
    return found


class Batches:
    """The batches of a round, each a function of (seed, round, update): epochs are permutations, one after the other.

    A picture is shown as often in an epoch as it has repeats, with another of its captions each time.
    """

    def __init__(
        self, family: Family, encoded: Encoded, records: Sequence[Record], fakes: Callable[[Sequence[Record]], Tensor] | None,
        settings: Learn, seed: int, round_: int,
    ) -> None:  # fmt: skip
        self._family, self._encoded, self._shows, self._fakes = family, encoded, shows(records), fakes
        self._settings, self._names = settings, (seed, round_)
        self.known: Errors = {}  # what was measured ahead: (draws,) each

    @property
    def draws(self) -> int:
        """How many the round has."""
        return self._settings.updates * self._settings.batch

    def at(self, update: int) -> Batch:
        """The batch of an update, from 0."""
        return self.between(update * self._settings.batch, (update + 1) * self._settings.batch)

    def between(self, start: int, end: int) -> Batch:
        """The draws from `start` to before `end`, counted through the round."""
        places = [divmod(i, len(self._shows)) for i in range(start, end)]
        orders = {epoch: order(len(self._shows), "learn", *self._names, epoch) for epoch, _ in places}
        rows = [self._shows[orders[epoch][place]].at(epoch) for epoch, place in places]
        dropped = [self._coin(r, epoch) < self._settings.caption_dropout for r, epoch in rows]
        batch = make_batch(self._family, self._encoded, rows, self._fakes, dropped, ("learn", *self._names))
        known = {name: value[start:end].to(batch.t.device) for name, value in self.known.items()}
        return replace(batch, known=known)

    def _coin(self, record: Record, epoch: int) -> float:
        return torch.rand((), generator=generator("caption", *self._names, record.key, epoch)).item()


def make_batch(
    family: Family, encoded: Encoded, rows: Sequence[tuple[Record, int]],
    fakes: Callable[[Sequence[Record]], Tensor] | None, dropped: Sequence[bool] | None, names: tuple[int | str, ...],
) -> Batch:  # fmt: skip
    """(record, epoch) rows -> a batch on the network's device, with the draws of `names`."""
    device = next(family.net.parameters()).device
    records = [r for r, _ in rows]
    draws = [draw(family.latent_shape, r.key, epoch, *names) for r, epoch in rows]
    cond = {name: value.to(device) for name, value in encoded.cond(records, dropped).items()}
    return Batch(
        real=encoded.real(records).to(device),
        fake=fakes(records).to(device) if fakes else None,
        eps=torch.stack([eps for _, eps in draws]).to(device),
        t=family.path.times(torch.tensor([u for u, _ in draws])).to(device),
        cond=cond,
    )


@dataclass
class Progressed:
    """Where a round's learning stands; with the policy and the optimizer, all that a resume needs."""

    update: int = 0
    norm: float | None = None  # running mean of gradient norms


class Diverged(Exception):
    """A loss or a gradient that is no number; the policy and `Progressed` are as they were before that update."""

    def __init__(self, loss: float, norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


def learn(
    family: Family, slots: Slots, method: Method, batches: Batches, optimizer: torch.optim.Optimizer, settings: Learn,
    fallback: Fallback, state: Progressed, after: Callable[[dict[str, float]], None],
) -> None:  # fmt: skip
    """Bring the policy from `state.update` to the round's end; `after` each update is given its figures.

    The learning rate rises over the first 5 % of the round and falls to 0 along a cosine: a round ends in a snapshot, and
    a snapshot taken at full rate is a noisy one; schedule-free averages its steps instead. A gradient longer than 3 x the
    running mean of their norms is shortened to that: unlike a fixed limit this means the same for every beta, method and model.

    Where memory runs out in a step, its gradients are dropped and the same draws are stepped again with a cheaper setting.
    Raises Diverged.
    """
    warmup = max(1, settings.updates // 20)
    parameters = slots.parameters()

    def attempt(levers: Levers) -> tuple[Tensor, Errors]:
        optimizer.zero_grad(set_to_none=True)
        family.set_checkpointing(levers.checkpointing)
        return step(family, slots, method, batches.at(state.update), levers.one_graph, levers.micro_batch)

    while state.update < settings.updates:
        for group in optimizer.param_groups:
            rise, fall = (state.update + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * state.update / settings.updates)
            group["lr"] = settings.rate * min(1.0, rise) * (1.0 if settings.optimizer == "schedulefree" else fall)
        loss, errors = fallback.run("learn", settings.batch, attempt)
        limit = 3 * state.norm if state.norm else float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not (torch.isfinite(loss) and norm < float("inf")):
            raise Diverged(loss.item(), norm)
        optimizer.step()
        clipped = min(norm, limit)
        state.norm = clipped if state.norm is None else 0.9 * state.norm + 0.1 * clipped
        state.update += 1
        after({"update": state.update, "loss": loss.item(), **figures(errors), "grad_norm": norm})
