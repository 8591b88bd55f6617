"""LoRA on linear layers and convolutions: rank-stabilised scale, DoRA, snapshots."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.export.export import CAREFUL
from spinlite.lora.adapters import Slots, delta, module_names
from spinlite.lora.bake import KEPT, bake_dora
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from tests.toy import TOY, Quiet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def moved(dora: bool, rslora: bool = False) -> tuple[Net, Slots]:
    net = Net()
    slots = Slots(net, ["conv", "linear"], rank=4, alpha=8.0, seed=1, rslora=rslora, dora=dora)
    slots.load("policy", {k: v + 0.3 * torch.randn_like(v) for k, v in slots.state("policy").items()})
    return net, slots


X = torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize("x", [X, X[..., :1, :1]], ids=["many places", "few places"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_slot_does_what_the_base_with_its_change_does(dora: bool, rslora: bool, x: torch.Tensor):
    net, slots = moved(dora, rslora)
    assert slots.scale == (4.0 if rslora else 2.0)
    state, merged = slots.state("policy"), Net()
    assert sorted(module_names(state)) == ["conv", "linear"]
    for module in module_names(state):
        layer = getattr(merged, module)
        layer.weight.data += delta(state, module, slots.scale, layer.weight.data)
    assert_close(net(x), merged(x))
    with torch.no_grad():
        assert_close(net(x), merged(x))
    with slots.use("base"):
        assert torch.equal(net(x), Net()(x))
    with slots.use("opponent"):  # it has not moved
        assert_close(net(x), Net()(x))


@pytest.mark.parametrize("x", [X, X[..., :1, :1]], ids=["many places", "few places"])
def test_a_slot_has_the_gradient_of_its_change(x: torch.Tensor):
    net, slots = moved(False)
    net(x).square().sum().backward()
    state = {name: value.requires_grad_() for name, value in slots.state("policy").items()}
    changed = {f"{m}.weight": getattr(Net(), m).weight.detach() + delta(state, m, slots.scale) for m in module_names(state)}
    torch.func.functional_call(Net(), changed, x).square().sum().backward()
    for ours, theirs in zip(slots.parameters(), state.values(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_a_zero_opponent_does_no_work_for_its_lora():
    net, slots = moved(False)

    def operations() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(X[..., :1, :1])
        return counter.get_total_flops()

    with slots.use("base"):
        plain = operations()
    with slots.use("opponent"):
        assert operations() == plain
        slots.load("opponent", slots.state("policy"))
        assert operations() > plain
        slots.load("opponent", {k: v * ("lora_A" in k) for k, v in slots.state("policy").items()})
        assert operations() == plain


def test_in_half_precision_weights_are_cast_once_in_a_block_and_learn_as_if_they_were_cast_each_time():
    net = Net().to(torch.bfloat16)
    slots = Slots(net, ["conv", "linear"], rank=4, alpha=8.0, seed=1)
    slots.load("policy", {k: v + 0.3 * torch.randn_like(v) for k, v in slots.state("policy").items()})
    x, found = X.bfloat16(), []
    for block in (contextlib.nullcontext, lambda: slots.use("policy")):
        with block():
            for _ in range(2):
                net(x).float().square().sum().backward()
        found.append([p.grad for p in slots.parameters()])
        for p in slots.parameters():
            p.grad = None
    assert_close(found[1], found[0], atol=0, rtol=0)
    assert all(g is not None and g.dtype == torch.float32 for g in found[0])
    before = net(x)
    with torch.no_grad():
        slots.parameters()[1].add_(1.0)
    assert not torch.equal(net(x), before), "after a block the weights are read again"


def test_a_block_that_runs_out_of_memory_as_it_begins_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    net = nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16)
    slots = Slots(net, ["0"], rank=2, alpha=2.0, seed=0)
    x = torch.randn(3, 4, dtype=torch.bfloat16)

    def fail(self: Slots, who: str) -> None:
        raise torch.OutOfMemoryError("a test")

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(Slots, "_cast", fail)
        with slots.use("policy"):
            raise AssertionError
    before = net(x)
    slots.load("policy", {name: value + 1 for name, value in slots.state("policy").items()})
    assert not torch.equal(net(x), before)
    with torch.no_grad():
        slots.parameters()[1].add_(1)
    once = net(x)
    slots.parameters()[1].data.zero_()
    assert not torch.equal(net(x), once), "weights are cast anew in each pass outside of a block"


@pytest.mark.parametrize("slope", [math.nan, math.inf, 0.0, 1e-7])
def test_in_fp16_a_slope_of_any_size_gives_a_gradient(slope: float):
    """What is not a number stays so, and the loop sees it in the gradient's norm."""
    net = Net().to(torch.float16)
    slots = Slots(net, ["conv", "linear"], rank=4, alpha=8.0, seed=1)
    error = net(X.half()).float().square().mean(1)
    slots.backward(error, torch.tensor([slope, 0.0]), 4, lambda: error)
    norm = nn.utils.get_total_norm([p.grad for p in slots.parameters() if p.grad is not None]).item()
    assert norm > 0 if slope == 1e-7 else norm == 0 if slope == 0 else not math.isfinite(norm)


def test_dora_learns_magnitudes_and_a_snapshot_holds_them():
    net, slots = moved(dora=True)
    names = [name for name in slots.state("policy") if "magnitude" in name]
    assert len(names) == 2 and len(slots.parameters()) == 6
    net(X).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in slots.parameters())
    slots.load("opponent", slots.state("policy"))
    with slots.use("opponent"):
        other = net(X)
    assert torch.equal(other, net(X))
    with pytest.raises(SpinliteError, match="does not fit"):
        slots.load("policy", {k: v for k, v in slots.state("policy").items() if "magnitude" not in k})


def test_a_dora_becomes_a_plain_lora_and_its_error_is_what_is_said():
    _, slots = moved(dora=True)
    state = slots.state("policy")
    lora, off = bake_dora(state, slots.scale, Net())
    whole = {m: delta(state, m, slots.scale, getattr(Net(), m).weight.detach()) for m in module_names(state)}
    left = torch.cat([(lora[f"unet.{m}"].change - change).flatten() for m, change in whole.items()])
    assert off == pytest.approx((left.norm() / torch.cat([c.flatten() for c in whole.values()]).norm()).item(), abs=1e-5)
    assert off < KEPT and all(pair.rank > 4 or pair.rank == min(pair.down.flatten(1).shape) for pair in lora.values())
    with pytest.raises(ValueError, match="magnitude"):
        delta(state, "linear", slots.scale)


def test_a_run_with_dora_exports_a_plain_lora(toy: Settings, tmp_path: Path):
    settings = load_settings(TOY, data__folder=toy.data.folder, model__dora=True, run__rounds=1, judge__stop=False)
    watch = Quiet()
    outcome = train(settings, tmp_path / "runs" / "r", watch)
    assert any("magnitude" in name for name in read_tensors(outcome.run.snapshot_path(1))[0])
    assert all("lora_" in name for name in read_tensors(outcome.run.export_path)[0])
    assert any("DoRA as a plain LoRA" in line for line in watch.said)
    assert train(settings, tmp_path / "runs" / "r", Quiet()).already


@pytest.mark.parametrize("width", [640, 1280])
def test_at_real_widths_a_dora_is_further_off_as_a_plain_lora_than_an_export_passes_over(width: int):
    """Other lengths of the rows are a change of every rank, and a small LoRA is lost beside it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, width))
    slots = Slots(net, ["0"], rank=4, alpha=4.0, seed=1, dora=True)
    state = slots.state("policy")
    magnitude = next(name for name in state if "magnitude" in name)
    state[magnitude] = state[magnitude] * (1 + 1e-3 * torch.randn_like(state[magnitude]))
    assert bake_dora(state, slots.scale, net)[1] > CAREFUL


def test_an_export_that_does_not_do_what_was_trained_says_so_first(toy: Settings, tmp_path: Path):
    more = {"model__dora": True, "model__rank": 1, "run__rounds": 1, "judge__stop": False}
    watch = Quiet()
    train(load_settings(TOY, ["learn.lr=0.05"], data__folder=toy.data.folder, **more), tmp_path / "runs" / "r", watch)
    assert any(": CAREFUL, this file does not do what was trained: " in line for line in watch.said), watch.said
