"""The one step, on a tiny network in float64: its gradient is autograd's, in every layout."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from spinlite.config.settings import Model
from spinlite.families.toy import Toy
from spinlite.lora.adapters import Slots, delta, module_names
from spinlite.maths.losses import error
from spinlite.memory import device
from spinlite.methods.ddo import DDO
from spinlite.methods.dpo import DPO
from spinlite.methods.dro import DRO
from spinlite.methods.kto import KTO
from spinlite.methods.registry import METHODS as METHODS_BY_NAME
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.methods.sudo import SUDO
from spinlite.training import step as step_module
from spinlite.training.batches import Batch
from spinlite.training.step import figures, measure, step

METHODS = [
    SFT(), SPIN(beta=3.0), SePPO(beta=3.0), SePPO(beta=3.0, gate="indicator"), SePPO(beta=3.0, gate="sft"), DPO(beta=3.0),
    DRO(beta=3.0), DDO(beta=3.0), KTO(beta=3.0), SUDO(beta=3.0),
]  # fmt: skip
CPU = device.Device(torch.device("cpu"), "a test")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch):
    """Errors in float64, so that layouts can be compared to rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def toy() -> tuple[Toy, Slots]:
    family = Toy(Model(base="0"), CPU)
    family.net.double()
    slots = Slots(family.net, family.lora_targets["all"], rank=3, alpha=6.0, seed=1)
    for layer in slots._layers.values():
        for part in ("lora_A", "lora_B"):
            getattr(layer, part).double()
    torch.manual_seed(7)
    for who in ("policy", "opponent"):
        slots.load(who, {name: 0.3 * torch.randn_like(value) for name, value in slots.state(who).items()})
    return family, slots


def batch(n: int = 8) -> Batch:
    torch.manual_seed(3)
    real, fake, eps = (torch.randn(n, 2, dtype=torch.float64) for _ in range(3))
    return Batch(real, fake, eps, torch.rand(n, dtype=torch.float64), {"words": torch.rand(n, 16, dtype=torch.float64)})


def rows(b: Batch, where: slice) -> Batch:
    assert b.fake is not None
    return Batch(b.real[where], b.fake[where], b.eps[where], b.t[where], {k: v[where] for k, v in b.cond.items()})


def gradient(slots: Slots) -> list[Tensor]:
    found = [p.grad.clone() for p in slots.parameters() if p.grad is not None]
    assert len(found) == len(slots.parameters())
    for p in slots.parameters():
        p.grad = None
    return found


@pytest.mark.parametrize("ahead", [False, True], ids=["live", "ahead"])
@pytest.mark.parametrize("one_graph", [False, True], ids=["at once", "one graph"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_layout_gives_the_gradient_of_autograd(method, one_graph: bool, ahead: bool, toy, exact):
    """With the whole batch, with micro-batches that divide it and that don't; opponent errors live and measured ahead."""
    family, slots = toy
    b = batch()
    errors = {name: measure(family, slots, name, b) for name in step_module.required_errors(method)}
    loss = method.loss(**errors).mean()
    loss.backward()
    plain = gradient(slots)
    known = {name: value.detach() for name, value in errors.items() if ahead and not name.startswith("policy")}
    for micro_batch in (None, 1, 3, 4, 8, 100):
        got, found = step(family, slots, method, replace(b, known=known), one_graph, micro_batch)
        assert_close(got, loss.detach())
        assert_close(found, {name: value.detach() for name, value in errors.items()})
        assert_close(gradient(slots), plain)


def test_every_method_is_stepped_here():
    assert {type(method) for method in METHODS} == set(METHODS_BY_NAME.values())


def test_the_step_runs_the_policy_alone_where_the_rest_is_known(toy, monkeypatch: pytest.MonkeyPatch):
    family, slots = toy
    b, measured = batch(), []
    known = {name: measure(family, slots, name, b).detach() for name in ("opponent_real", "opponent_fake")}
    together = step_module.measure_together
    monkeypatch.setattr(step_module, "measure_together", lambda *args: measured.append(args[2]) or together(*args))
    step(family, slots, SPIN(beta=3.0), replace(b, known=known), one_graph=False, micro_batch=4)
    assert measured == [["policy_real", "policy_fake"]] * 2


@pytest.mark.parametrize("one_graph", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_batch_of_8_is_the_mean_of_8_of_1(method, one_graph: bool, toy, exact):
    family, slots = toy
    b = batch()
    loss, _ = step(family, slots, method, b, one_graph)
    whole = gradient(slots)
    parts, losses = [], []
    for i in range(8):
        losses.append(step(family, slots, method, rows(b, slice(i, i + 1)), one_graph)[0])
        parts.append(gradient(slots))
    assert_close(torch.stack(losses).mean(), loss)
    assert_close([torch.stack(each).mean(0) for each in zip(*parts, strict=True)], whole)


def test_one_graph_at_a_time_holds_one_graph(toy):
    """Activations saved for backward, alive at once: real and fake together hold twice what one holds."""
    family, slots = toy
    method, b = SPIN(beta=3.0), batch()
    most = {}
    for one_graph in (False, True):
        alive = high = 0

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal alive, high
                self.tensor, self.numbers = tensor, tensor.numel() if tensor.shape[:1] in ((8,), (16,)) else 0
                alive += self.numbers
                high = max(high, alive)

            def __del__(self) -> None:
                nonlocal alive
                alive -= self.numbers

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            step(family, slots, method, b, one_graph)
        most[one_graph] = high
    assert most[True] < 0.6 * most[False]


def test_the_opponent_slot_is_a_merged_copy_of_base_and_snapshot(toy):
    family, slots = toy
    snapshot = slots.state("opponent")
    merged = Toy(Model(base="0"), CPU)
    merged.net.double()
    plain: dict[str, nn.Linear] = {n: m for n, m in merged.net.named_modules() if isinstance(m, nn.Linear)}
    for module in module_names(snapshot):
        plain[module].weight.data += delta(snapshot, module, slots.scale)
    b = batch()
    x_t = family.path.noise(b.real, b.eps, b.t)
    expected = error(merged.denoise(x_t, b.t, b.cond), family.path.target(b.real, b.eps, b.t))
    assert_close(measure(family, slots, "opponent_real", b).detach(), expected.detach(), rtol=1e-5, atol=1e-7)


def test_the_base_is_the_network_without_lora_and_use_leaves_no_trace(toy):
    family, slots = toy
    bare = Toy(Model(base="0"), CPU)
    bare.net.double()
    b = batch()
    before = measure(family, slots, "policy_real", b)
    with slots.use("base"):
        assert_close(family.denoise(b.real, b.t, b.cond), bare.denoise(b.real, b.t, b.cond))
    with slots.use("opponent"), pytest.raises(RuntimeError), slots.use("base"):
        raise RuntimeError
    assert torch.equal(measure(family, slots, "policy_real", b), before)
    assert all(p.requires_grad for p in slots.parameters())


def test_only_the_policy_gets_a_gradient(toy):
    family, slots = toy
    step(family, slots, SPIN(beta=3.0), batch(), one_graph=False)
    with_gradient = {name for name, p in family.net.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name in with_gradient if ".policy." in name}
    assert len(with_gradient) == len(slots.parameters())


def test_a_snapshot_of_another_rank_is_refused(toy):
    family, slots = toy
    other = Slots(copy.deepcopy(Toy(Model(base="0"), CPU)).net, family.lora_targets["all"], rank=2, alpha=2.0, seed=1)
    with pytest.raises(Exception, match="does not fit"):
        slots.load("policy", other.state("policy"))


def test_figures_by_hand():
    found = figures({
        "policy_real": torch.tensor([0.1, 0.3]), "opponent_real": torch.tensor([0.2, 0.2]),
        "policy_fake": torch.tensor([0.4, 0.1]), "opponent_fake": torch.tensor([0.3, 0.3]),
    })  # fmt: skip
    assert found["margin"] == pytest.approx((0.2 + -0.3) / 2)
    assert found["accuracy"] == 0.5
    assert found["gate_rate"] == 0.5
    assert found["policy_real"] == pytest.approx(0.2)
