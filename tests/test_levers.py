"""Memory levers: on equals off, within the precision's tolerance, on small networks of the real classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spinlite import config, device
from spinlite.adapters import Slots
from spinlite.device import Levers
from spinlite.families import Family, family
from spinlite.learn import Batch, step
from spinlite.methods import DPO, SFT, SPIN, SePPO

METHODS = [SFT(), SPIN(beta=30.0), SePPO(beta=30.0), SePPO(beta=30.0, gate="indicator"), DPO(beta=30.0)]


def made(base: Path, **levers: Any) -> tuple[Family, Slots]:
    """A family under some levers, and a LoRA as large as a trained one in both slots."""
    where = device.Device(torch.device("cpu"), "a test", Levers(**levers))
    found = family(config.Model(base=str(base)), where)
    slots = Slots(found.net, found.lora_targets["all"], rank=4, alpha=4.0, seed=1)
    torch.manual_seed(5)
    for who in ("policy", "opponent"):
        slots.load(who, {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state(who).items()})
    return found, slots


def batch(found: Family, n: int = 2) -> Batch:
    torch.manual_seed(2)
    real, fake, eps = (torch.randn(n, *found.latent_shape) for _ in range(3))
    return Batch(real, fake, eps, torch.tensor([50, 900])[:n], found.prompt(["a cat", "two dogs"][:n]))


def gradient(found: Family, slots: Slots, method: Any = SPIN(beta=30.0), one_graph: bool = False) -> list[Tensor]:  # noqa: B008
    """[loss, the policy's gradients]."""
    loss, _ = step(found, slots, method, batch(found), one_graph)
    grads = [p.grad for p in slots.parameters() if p.grad is not None]
    assert len(grads) == len(slots.parameters())
    for p in slots.parameters():
        p.grad = None
    return [loss, *grads]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of two gradients, as a share of the second."""
    a, b = (torch.cat([g.flatten().double() for g in gs[1:]]) for gs in (ours, theirs))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("one_graph", [False, True])
def test_a_checkpointed_step_has_the_gradient_of_the_plain_one(kind: str, one_graph: bool, tiny_bases: Path):
    found, slots = made(tiny_bases / kind)
    for method in METHODS:
        plain = gradient(found, slots, method, one_graph)
        found.set_checkpointing(True)
        assert_close(gradient(found, slots, method, one_graph), plain)
        found.set_checkpointing(False)
        assert sum(g.norm() for g in plain[1:]) > 0


def test_checkpointing_keeps_fewer_activations(tiny_bases: Path):
    saved: dict[bool, int] = {}
    for on in (False, True):
        found, _ = made(tiny_bases / "sdxl", checkpointing=on)
        numbers = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel() * tensor.requires_grad
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            b = batch(found)
            found.denoise(b.real, b.t, b.cond)
        saved[on] = numbers
    assert 0 < saved[True] < 0.3 * saved[False]


def test_the_checkpoints_of_a_policy_can_not_be_computed_again_as_someone_else(tiny_bases: Path):
    """Going back under another adapter is an error, never a gradient of zero."""
    found, slots = made(tiny_bases / "sd15", checkpointing=True)
    b = batch(found)
    output = found.denoise(b.real, b.t, b.cond)
    with slots.use("base"), pytest.raises(Exception, match="recomputation"):
        output.sum().backward()
