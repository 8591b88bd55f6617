"""The one training step, for every method."""

import inspect
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.losses import TIE, error
from spinlite.methods.registry import Method
from spinlite.training.batches import Batch, Errors


def measure(family: Family, slots: Slots, name: str, batch: Batch) -> Tensor:
    """The denoising error called `name`, e.g. "opponent_fake": (B,), fp32. The draw is the same for all of them.

    On a fake's own path it is the squared distance to what the opponent predicted there: the opponent's own is 0.
    """
    who, _, side = name.partition("_")
    if side == "fake" and batch.path_points:
        x_t, t, target = batch.path_points.x_t, batch.path_points.t, batch.path_points.own
    else:
        x0 = batch.real if side == "real" else batch.fake
        assert x0 is not None, f"{name} was asked for without fakes"
        eps = batch.eps if side == "real" or batch.eps_fake is None else batch.eps_fake
        x_t, t, target = family.path.noise(x0, eps, batch.t), batch.t, family.path.target(x0, eps, batch.t)
    with slots.use(who):  # pyright: ignore[reportArgumentType]
        return error(family.denoise(x_t, t, batch.cond), target)


def required_errors(method: Method) -> list[str]:
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
        _step_part(family, slots, method, part, one_graph, scale * len(part.t) / len(batch.t))
        for part in batch.parts(micro_batch or len(batch.t))
    ]
    errors = {name: torch.cat([found[name] for _, found in done]) for name in done[0][1]}
    return torch.stack([loss for loss, _ in done]).sum(), errors


def _step_part(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, share: float
) -> tuple[Tensor, Errors]:
    """The step on samples that go through the network at once; their mean loss counts `share`.

    With `one_graph` one activation graph is alive at a time: the loss sees only errors, so its slope at each error is
    found without the network, and every policy error is then driven back by its own slope, in a graph of its own. The
    one measured last keeps its first graph; each other costs one more forward. The gradient is the same.
    """
    names = required_errors(method)
    mine = [name for name in names if name.startswith("policy")]
    graphs: Errors = {}

    def found(name: str) -> Tensor:
        if name in batch.known:
            return batch.known[name]
        if not batch.path_points or name.endswith("real"):
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
