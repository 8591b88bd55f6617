"""Guards: signs that a round has gone wrong, or has nothing left to teach. They read the errors that the steps measure anyway.

Policy and opponent are measured with the same noise and timesteps, so chance cancels in their difference: a mean over a few
dozen pairs is already precise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from spinlite.methods.registry import Method
from spinlite.training.batches import Errors

PAIRS = 64  # an alarm looks at the mean over so many pairs
LONG = 256  # a round counts as won after so many pairs
STRANGE = 4.0  # x the opponent's error on real: no picture that it drew itself is so hard for it
WORSE = 1.5  # x the opponent's error: a method with a `bound` stops pushing a fake away there by itself
SPENT = 0.01  # share of the pull that a round begins with
Figures = Mapping[str, float]  # of an update: the means of its errors, "margin", "accuracy" and "pull"


class Diverged(Exception):
    """A guard acted. `guard` names it, the message says why; `update` is the last one that was made, or 0."""

    def __init__(self, guard: str, why: str, update: int = 0) -> None:
        super().__init__(guard, why, update)
        self.guard, self.why, self.update = guard, why, update

    def __str__(self) -> str:
        return self.why


def pull(method: Method, errors: Errors, weight: Tensor | None = None) -> float:
    """How hard the loss still pulls at the policy, as a share of how hard it pulls while the policy is its opponent.

    The pull is the sum of |slope of the loss| over the policy's errors, (B,) each. It starts at 1 and goes to 0 as pairs are
    won. The anchor is left out, since it always pulls with the same strength. With AdamW the steps shrink with the pull: the
    mean square that it divides a gradient by remembers about 1000 updates.
    """
    if weight is not None:
        errors = {name: value * weight.to(value.device) for name, value in errors.items()}
    free = replace(method, anchor=0.0) if "anchor" in {f.name for f in fields(method)} else method  # pyright: ignore[reportCallIssue]
    tie = {name: errors[name.replace("policy", "opponent")] for name in errors}
    return _sum_slopes(free, errors) / _sum_slopes(free, tie)


def _sum_slopes(method: Method, errors: Errors) -> float:
    policy = {name: value.detach().double().requires_grad_() for name, value in errors.items() if name.startswith("policy")}
    with torch.enable_grad():
        loss = method.loss(**{name: policy.get(name, value.detach().double()) for name, value in errors.items()})
    slopes = torch.autograd.grad(loss.sum(), list(policy.values()), allow_unused=True)
    return sum(slope.abs().sum().item() for slope in slopes if slope is not None)


def look_out(recent: Sequence[Figures], batch: int, played: bool, update: int, guarded: bool) -> None:
    """Raises Diverged if the round is guarded and has gone wrong by this update (`find_alarm`)."""
    if guarded and (alarm := find_alarm(recent, batch, played)):
        raise Diverged(*alarm, update)


def find_alarm(recent: Sequence[Figures], batch: int, played: bool) -> tuple[str, str] | None:
    """(guard, why) if the last PAIRS pairs show that the round has gone wrong; None if all is well.

    `recent` are the figures of the updates so far, each of `batch` pairs. `played`: the opponent made the fakes itself.

    "fakes"    The opponent's error on the fakes is above STRANGE x its error on real: it can't have drawn them.
    "margin"   Denoising real pictures better gains at most the opponent's whole error there. A margin above the larger of the
               opponent's two errors comes from denoising the fakes ever worse.
    "runaway"  An error is above WORSE x the opponent's, while the error on real is not below the opponent's.
    """
    mean = _mean(recent, batch, PAIRS)
    if mean is None or "opponent_fake" not in mean:
        return None
    if played and mean["opponent_fake"] > STRANGE * mean["opponent_real"]:
        times = mean["opponent_fake"] / mean["opponent_real"]
        return "fakes", f"the opponent denoises its fakes {times:.1f} times worse than your pictures, so they can't be its own"
    size = max(mean["opponent_real"], mean["opponent_fake"])
    if mean["margin"] > size:
        why = f"the margin ({mean['margin']:.3g}) has outgrown the opponent's errors ({size:.3g})"
        return "margin", why + ": the policy spoils fakes instead of learning your pictures"
    for side in ("fake", "real"):
        grown = mean[f"policy_{side}"] / mean[f"opponent_{side}"]
        if grown > WORSE and mean["policy_real"] >= mean["opponent_real"]:
            why = f"the error on {side} pictures has grown to {grown:.2f} times the opponent's"
            return "runaway", why + (", and the error on real pictures has not fallen" if side == "fake" else "")
    return None


def won(recent: Sequence[Figures], batch: int) -> bool:
    """Whether the last LONG pairs were won so clearly that almost no pull is left: more updates would change nothing."""
    mean = _mean(recent, batch, LONG)
    return mean is not None and mean.get("pull", 1.0) < SPENT and mean["margin"] > 0


def soonest_won(recent: Sequence[Figures], batch: int) -> int:
    """After how many more updates `won` may be true at the soonest: the pull of an update is never below 0."""
    count = updates_for(LONG, batch)
    known = [each.get("pull", math.inf) for each in recent[-count:]]
    return next((
        more for more in range(max(count - len(known), 1), count)
        if sum(known[len(known) + more - count :]) / count < SPENT
    ), count)  # fmt: skip


def keep_recent(recent: Sequence[Figures], batch: int) -> list[Figures]:
    """The last updates, as many as the guards look at."""
    return list(recent[-updates_for(LONG, batch) :])


def updates_for(pairs: int, batch: int) -> int:
    """How many updates show so many pairs."""
    return -(-pairs // batch)


def _mean(recent: Sequence[Figures], batch: int, pairs: int) -> dict[str, float] | None:
    """The figures' means over the last pairs; None while there are fewer."""
    count = updates_for(pairs, batch)
    if len(recent) < count:
        return None
    return {name: sum(each[name] for each in recent[-count:]) / count for name in recent[-1]}
