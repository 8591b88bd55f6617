"""The one training step and the one loop, for every method."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import Tensor, nn

from spinlite.adapters import Slots
from spinlite.batches import Batch, Batches, Errors
from spinlite.config import Learn
from spinlite.device import Levers
from spinlite.fallback import Fallback
from spinlite.families import Family
from spinlite.guards import Diverged, Figures, alarm, kept, pull, won
from spinlite.maths.leash import automatic_beta, running
from spinlite.maths.losses import TIE, error
from spinlite.methods import Method


def measure(family: Family, slots: Slots, name: str, batch: Batch) -> Tensor:
    """The denoising error called `name`, e.g. "opponent_fake": (B,), fp32. The draw is the same for all of them.

    On a fake's own path it is the squared distance to what the opponent predicted there: the opponent's own is 0.
    """
    who, _, side = name.partition("_")
    if side == "fake" and batch.walked:
        x_t, t, target = batch.walked.x_t, batch.walked.t, batch.walked.own
    else:
        x0 = batch.real if side == "real" else batch.fake
        assert x0 is not None, f"{name} was asked for without fakes"
        eps = batch.eps if side == "real" or batch.eps_fake is None else batch.eps_fake
        x_t, t, target = family.path.noise(x0, eps, batch.t), batch.t, family.path.target(x0, eps, batch.t)
    with slots.use(who):  # pyright: ignore[reportArgumentType]
        return error(family.denoise(x_t, t, batch.cond), target)


def asked(method: Method) -> list[str]:
    """The names of the errors a method's loss is made of, the policy's last."""
    return sorted(inspect.signature(method.loss).parameters, key=lambda name: name.startswith("policy"))


def step(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, micro_batch: int | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Errors]:  # fmt: skip
    """Add the gradient of scale x the mean loss to the policy's; returns (that, errors (B,) by name), detached.

    With `micro_batch` so many samples go through the network at once, and gradients add up: a method's loss is a number
    for each sample, so that the mean over the batch is the mean of its parts' means, each weighed by its share.
    """
    done = [
        _part(family, slots, method, part, one_graph, scale * len(part.t) / len(batch.t))
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

    def found(name: str) -> Tensor:
        if name in batch.known:
            return batch.known[name]
        if not batch.walked or name.endswith("real"):
            return measure(family, slots, name, batch)
        # What the opponent's own noise on its path adds to both errors is the same for both and cancels. In its place
        # stands the opponent's error on real: the bound and the figures keep their units.
        level = graphs["opponent_real"].detach()
        return level if name == "opponent_fake" else level + measure(family, slots, name, batch)

    for name in names:
        keep = name in mine and (not one_graph or name == mine[-1])
        with torch.set_grad_enabled(keep):
            graphs[name] = found(name)
    errors = {name: value.detach().requires_grad_(name in mine) for name, value in graphs.items()}
    weighed = errors if batch.weight is None else {name: batch.weight * value for name, value in errors.items()}
    loss = method.loss(**weighed).mean() * share
    loss.backward()
    for name in reversed(mine):
        again = partial(measure, family, slots, name, batch)
        slots.backward(graphs.pop(name), errors[name].grad, batch.real[0].numel(), again)
    return loss.detach(), {name: value.detach() for name, value in errors.items()}


def margins(errors: Mapping[str, Tensor]) -> Tensor:
    """Gain on real - gain on fake, (B,)."""
    return (errors["opponent_real"] - errors["policy_real"]) - (errors["opponent_fake"] - errors["policy_fake"])


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
            margin = margins(errors)
            found["margin"] = margin.mean().item()
            found["accuracy"] = (margin > 0).float().mean().item()
    return found


@dataclass
class Progressed:
    """Where a round's learning stands; with the policy and the optimizer, all that a resume needs."""

    update: int = 0
    norm: float | None = None  # running mean of gradient norms
    margin: float | None = None  # running mean of |margin|, weighed, where beta is found
    level: float | None = None  # the same of the opponent's error on real
    recent: list[Figures] = field(default_factory=list)  # of the last updates, for the guards

    def method(self, method: Method, aim: float) -> Method:
        """The method with the beta that the round has come to, where beta is found."""
        if not aim or "beta" not in {f.name for f in fields(method)} or self.margin is None or self.level is None:
            return method
        return replace(method, beta=automatic_beta(self.margin, self.level, aim))  # pyright: ignore[reportCallIssue]

    def see(self, errors: Errors, weight: Tensor | None) -> None:
        """Take in the pairs of an update."""
        if "opponent_fake" not in errors:
            return
        weight = torch.ones_like(errors["policy_real"]) if weight is None else weight.to(errors["policy_real"].device)
        margin = weight * margins(errors)
        self.margin = running(self.margin, margin.abs())
        self.level = running(self.level, weight * errors["opponent_real"])


def learn(
    family: Family, slots: Slots, method: Method, batches: Batches, optimizer: torch.optim.Optimizer, settings: Learn,
    fallback: Fallback, state: Progressed, after: Callable[[dict[str, float]], None], guarded: bool = True,
) -> None:  # fmt: skip
    """Bring the policy from `state.update` to the round's end; `after` each update is given its figures. Where it is `guarded`,
    a round whose pairs are all won ends sooner.

    The learning rate rises over the first 5 % of the round and falls to 0 along a cosine: a round ends in a snapshot, and
    a snapshot taken at full rate is a noisy one; schedule-free averages its steps instead. A gradient longer than 3 x the
    running mean of their norms is shortened to that: unlike a fixed limit this means the same for every beta, method and model.

    Where memory runs out in a step, its gradients are dropped and the same draws are stepped again with a cheaper setting.
    Where beta is found (`settings.aim`), the loss is divided by it, so that its changes don't change the gradients' size.
    Raises Diverged where a guard acts; where it is that of numbers, the policy and `state` are as they were before that update.
    """
    warmup = max(1, settings.updates // 20)
    parameters = slots.parameters()

    def attempt(levers: Levers) -> tuple[Tensor, Errors, dict[str, float]]:
        optimizer.zero_grad(set_to_none=True)
        family.set_checkpointing(levers.checkpointing)
        return _update(family, slots, method, batches.at(state.update), levers, settings, state)

    while state.update < settings.updates and not (guarded and won(state.recent, settings.batch)):
        for group in optimizer.param_groups:
            rise, fall = (state.update + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * state.update / settings.updates)
            group["lr"] = settings.rate * min(1.0, rise) * (1.0 if settings.optimizer == "schedulefree" else fall)
        loss, errors, found = fallback.run("learn", settings.batch, attempt)
        limit = 3 * state.norm if state.norm else float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not (torch.isfinite(loss) and norm < float("inf")):
            problem = f"the loss ({loss.item():.3g}) or its gradient ({norm:.3g}) is not a number"
            raise Diverged("numbers", problem, state.update)
        optimizer.step()
        clipped = min(norm, limit)
        state.norm = clipped if state.norm is None else 0.9 * state.norm + 0.1 * clipped
        state.update += 1
        measured = figures(errors) | found
        state.recent = kept([*state.recent, measured], settings.batch)
        after({"update": state.update, "loss": loss.item(), "grad_norm": norm, **measured})
        if guarded and (problem := alarm(state.recent, settings.batch, method.fakes == "played")):
            raise Diverged(*problem, state.update)


def _update(
    family: Family, slots: Slots, method: Method, shapes: Sequence[Batch], levers: Levers, settings: Learn, state: Progressed
) -> tuple[Tensor, Errors, dict[str, float]]:
    """Add the gradient of an update's samples, those of one shape after the other; returns (loss, errors, further figures)."""
    now = state.method(method, settings.aim)
    beta = getattr(now, "beta", 1.0) if settings.aim else 1.0
    loss, found = torch.zeros(()), []
    for batch in shapes:  # the mean over an update's samples is that of its shapes' means, each weighed by its share
        share = len(batch.t) / settings.batch
        part, errors = step(family, slots, now, batch, levers.one_graph, levers.micro_batch, share / beta)
        loss, found = loss + part.cpu(), [*found, errors]
    errors = {name: torch.cat([each[name] for each in found]) for name in found[0]}
    weights = [batch.weight for batch in shapes if batch.weight is not None]
    weight = torch.cat(weights) if weights else None
    if settings.aim:
        state.see(errors, weight)
    told = {"beta": beta} if settings.aim else {}
    if "opponent_fake" in errors:
        told["pull"] = pull(now, errors, weight)
    return loss * beta, errors, told
