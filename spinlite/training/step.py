"""The one training step, the same for every method.

It measures the denoising errors that the method's loss needs, and leaves the gradient of the loss on the policy's LoRA. Which
errors a method needs is read from the parameter names of its `loss`, e.g. `loss(self, policy_real, opponent_real)`.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.losses import TIE, error
from spinlite.methods.registry import Method
from spinlite.training.batches import Batch, Errors


def measure(family: Family, slots: Slots, name: str, batch: Batch) -> Tensor:
    """One denoising error for each sample: (B,), fp32. `name` says whose and on which picture, e.g. "opponent_fake".

    Policy, opponent and base are measured with the same timesteps, the same noise and the same mask, which the batch holds.

    Where the batch holds points of the fakes' own sampling paths, a fake's error is the squared distance to the prediction
    that the opponent made there. The opponent's own error is then 0 by definition.
    """
    return measure_together(family, slots, [name], batch)


def measure_together(family: Family, slots: Slots, names: Sequence[str], batch: Batch) -> Tensor:
    """The named errors in one pass, one after the other: (len(names) * B,), fp32. All must be of one of the three, e.g. the
    policy's on the real picture and on the fake."""
    who = names[0].partition("_")[0]
    inputs = [_input(family, name.partition("_")[2], batch) for name in names]
    cond, mask = batch.cond, batch.mask
    x_t, t, target = inputs[0]
    if len(names) > 1:
        x_t, t, target = (torch.cat(rows) for rows in zip(*inputs, strict=True))
        cond = {name: torch.cat([value] * len(names)) for name, value in cond.items()}
        mask = None if mask is None else torch.cat([mask] * len(names))
    with slots.use(who):  # pyright: ignore[reportArgumentType]
        return error(family.denoise(x_t, t, cond), target, mask)


def _input(family: Family, side: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the network sees of the real picture or the fake, the time, and what it should say: x_t, t, target."""
    if side == "fake" and batch.path_points:
        return batch.path_points.x_t, batch.path_points.t, batch.path_points.own
    x0 = batch.real if side == "real" else batch.fake
    assert x0 is not None, f"an error on the {side} picture needs it, and the batch has none"
    eps = batch.eps if side == "real" or batch.eps_fake is None else batch.eps_fake
    return family.path.noise(x0, eps, batch.t), batch.t, family.path.target(x0, eps, batch.t)


def required_errors(method: Method) -> list[str]:
    """The names of the errors that a method's loss needs, the policy's last."""
    return sorted(inspect.signature(method.loss).parameters, key=lambda name: name.startswith("policy"))


def step(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, micro_batch: int | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Errors]:  # fmt: skip
    """Add the gradient of scale x the mean loss to the policy's. Returns (scale x the mean loss, the errors by name).

    `micro_batch` is how many samples go through the network together (None: the whole batch); their gradients are
    accumulated. Each part counts by its share of the batch, so the sum is the gradient of the whole batch's mean.
    """
    with slots.use("policy"):
        parts = [
            _step_part(family, slots, method, part, one_graph, scale * len(part.t) / len(batch.t))
            for part in batch.parts(micro_batch or len(batch.t))
        ]
    errors = {name: torch.cat([part_errors[name] for _, part_errors in parts]) for name in parts[0][1]}
    return torch.stack([loss for loss, _ in parts]).sum(), errors


def _step_part(
    family: Family, slots: Slots, method: Method, batch: Batch, one_graph: bool, scale: float
) -> tuple[Tensor, Errors]:
    """The step on samples that go through the network together: real and fake in one batch, or with `one_graph` in turn.

    The loss is a function of the errors alone. So its slope at each error is found first, without the network; then the
    policy's errors are driven back through the network by their own slopes. This gives the ordinary gradient.

    With `one_graph` only one activation graph is alive at a time, which saves memory. The policy error that was measured last
    still has its graph; every other policy error is measured a second time, which costs one forward each.
    """
    groups, found = _passes(method, batch, one_graph), dict(batch.known)
    policy = [names for names in groups if names[0].startswith("policy")]
    graph = torch.empty(0)
    for names in groups:
        with torch.set_grad_enabled(names is policy[-1]):
            graph = measure_together(family, slots, names, batch)
        found |= zip(names, graph.detach().chunk(len(names)), strict=True)
    if batch.path_points and "policy_fake" in found:
        # On its own path the opponent's error is 0 and the policy's is its distance from the opponent. The opponent's error on
        # the real picture is added to both: it cancels in the gain, and the bound and the journal keep their usual units.
        found["opponent_fake"] = found["opponent_real"]
        found["policy_fake"] = found["opponent_real"] + found["policy_fake"]

    errors = {name: found[name].detach().requires_grad_(name.startswith("policy")) for name in required_errors(method)}
    weighted = errors if batch.weight is None else {name: batch.weight * value for name, value in errors.items()}
    loss = method.loss(**weighted).mean() * scale
    loss.backward()  # fills errors[...].grad: the slope at each policy error

    for names in reversed(policy):
        slope = torch.cat([errors[name].grad for name in names])  # pyright: ignore[reportArgumentType, reportCallIssue]
        measure_again = partial(measure_together, family, slots, names, batch)
        slots.backward(graph, slope, batch.real[0].numel(), measure_again)
        graph = graph.detach()
    return loss.detach(), {name: value.detach() for name, value in errors.items()}


def _passes(method: Method, batch: Batch, one_graph: bool) -> list[list[str]]:
    """The errors that have to be measured, in groups that go through the network together; the policy's come last."""
    on_path = ["opponent_fake"] if batch.path_points else []
    names = [name for name in required_errors(method) if name not in batch.known and name not in on_path]
    if one_graph:
        return [[name] for name in names]
    who = dict.fromkeys(name.partition("_")[0] for name in names)
    return [[name for name in names if name.startswith(f"{each}_")] for each in who]


def margins(errors: Mapping[str, Tensor]) -> Tensor:
    """Gain on real - gain on fake, (B,)."""
    return (errors["opponent_real"] - errors["policy_real"]) - (errors["opponent_fake"] - errors["policy_fake"])


def figures(errors: Mapping[str, Tensor]) -> dict[str, float]:
    """The journal's figures of a batch: the mean of each error and, where the errors for it are there,

    margin     the mean margin
    accuracy   the share of pairs with a margin > 0
    gate_rate  the share of samples on which the policy is worse than the opponent on the real picture: there SePPO's gate acts
    """
    means = {name: value.mean().item() for name, value in errors.items()}
    if "opponent_real" in errors and "policy_real" in errors:
        gain_real = errors["opponent_real"] - errors["policy_real"]
        means["gate_rate"] = (gain_real < -TIE * errors["opponent_real"]).float().mean().item()
        if "opponent_fake" in errors:
            margin = margins(errors)
            means["margin"] = margin.mean().item()
            means["accuracy"] = (margin > 0).float().mean().item()
    return means
