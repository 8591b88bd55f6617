"""When a round goes wrong, or has nothing left to teach: read off the errors that its steps measure anyway.

Policy and opponent see the same draws, so that their difference is no matter of chance: means over a few pairs are sharp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from spinlite.methods.registry import Method
from spinlite.training.batches import Errors

PAIRS = 64  # over which errors are averaged
LONG = 256  # over which pairs must be won
STRANGE = 4.0  # times the opponent's error on real: nothing that it drew itself is so hard for it
WORSE = 1.5  # an error that has grown so far: there methods end the push by themselves (`bound`)
SPENT = 0.01  # of the pull that a round begins with
Figures = Mapping[str, float]  # of an update: the means of its errors, "margin", "accuracy" and "pull"


class Diverged(Exception):
    """A guard acted. `guard` names it, the message says why; `update` is the last one made, or 0."""

    def __init__(self, guard: str, why: str, update: int = 0) -> None:
        super().__init__(why)
        self.guard, self.update = guard, update


def pull(method: Method, errors: Errors, weight: Tensor | None = None) -> float:
    """What the pairs still ask of the policy: the size of the loss's slopes at the policy's errors, (B,) each, as a share of
    what it is where the policy is its opponent. The anchor, which asks for the same for ever, is left out.

    With AdamW a step shrinks with it: the mean square that a gradient is divided by remembers 1000 updates.
    """
    if weight is not None:
        errors = {name: value * weight.to(value.device) for name, value in errors.items()}
    free = replace(method, anchor=0.0) if "anchor" in {f.name for f in fields(method)} else method  # pyright: ignore[reportCallIssue]
    tie = {name: errors[name.replace("policy", "opponent")] for name in errors}
    return _slopes(free, errors) / _slopes(free, tie)


def _slopes(method: Method, errors: Errors) -> float:
    mine = {name: value.detach().double().requires_grad_() for name, value in errors.items() if name.startswith("policy")}
    with torch.enable_grad():
        loss = method.loss(**{name: mine.get(name, value.detach().double()) for name, value in errors.items()})
    found = torch.autograd.grad(loss.sum(), list(mine.values()), allow_unused=True)
    return sum(slope.abs().sum().item() for slope in found if slope is not None)


def find_alarm(recent: Sequence[Figures], batch: int, played: bool) -> tuple[str, str] | None:
    """(guard, why) where the last PAIRS pairs show that the round has gone wrong; `recent` are the updates so far, of `batch`
    each, and their fakes were `played` by the opponent or not.

    "fakes"    Played fakes are STRANGE to the opponent that is said to have drawn them.
    "margin"   A gain on real is at most the opponent's whole error there. A margin above the larger of the opponent's two
               errors is not won by denoising better: fakes were spoilt for it.
    "runaway"  An error has grown to WORSE times the opponent's while the one on real has not fallen.
    """
    mean = _mean(recent, batch, PAIRS)
    if mean is None or "opponent_fake" not in mean:
        return None
    if played and mean["opponent_fake"] > STRANGE * mean["opponent_real"]:
        times = mean["opponent_fake"] / mean["opponent_real"]
        return "fakes", f"the opponent denoises its fakes {times:.1f} times worse than your pictures, so they can't be its own"
    size = max(mean["opponent_real"], mean["opponent_fake"])
    if mean["margin"] > size:
        return "margin", f"the margin ({mean['margin']:.3g}) has outgrown the opponent's errors themselves ({size:.3g})"
    for side in ("fake", "real"):
        grown = mean[f"policy_{side}"] / mean[f"opponent_{side}"]
        if grown > WORSE and mean["policy_real"] >= mean["opponent_real"]:
            why = f"the error on {side} has grown to {grown:.2f} times the opponent's, and that on real has not fallen"
            return "runaway", why
    return None


def won(recent: Sequence[Figures], batch: int) -> bool:
    """Whether the last LONG pairs were won so clearly that they ask for nothing more."""
    mean = _mean(recent, batch, LONG)
    return mean is not None and mean.get("pull", 1.0) < SPENT and mean["margin"] > 0


def keep_recent(recent: Sequence[Figures], batch: int) -> list[Figures]:
    """As many of the updates as anything here looks at."""
    return list(recent[-updates_for(LONG, batch) :])


def updates_for(pairs: int, batch: int) -> int:
    """How many of them show so many pairs."""
    return -(-pairs // batch)


def _mean(recent: Sequence[Figures], batch: int, pairs: int) -> dict[str, float] | None:
    """Figures averaged over so many pairs; none before there are as many."""
    count = updates_for(pairs, batch)
    if len(recent) < count:
        return None
    return {name: sum(each[name] for each in recent[-count:]) / count for name in recent[-1]}
