"""What only a CUDA card can show: the plan against the allocator, the promised ratios, every preset in its card's memory.

`python -m pytest -m gpu` runs it there. The same checks run on the CPU at a small size, so that they stay right.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spinlite.bench.run import Figures, bench
from spinlite.bench.screen import APART, TARGETS
from spinlite.bench.turns import ratio
from spinlite.bench.ways import ONE_GRAPH, SFT_WAY
from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Learn, Model
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.memory.device import Device, Levers, upload
from spinlite.methods.kto import KTO
from spinlite.methods.registry import Method
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.training.average import Average
from spinlite.training.batches import Batch
from spinlite.training.learn_state import LearnState
from spinlite.training.step import step
from spinlite.training.update import Clipping, add_gradient
from tests.reads import NothingRead

CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here")]
NAMES = [name for name in shipped_presets() if name.endswith("gb")]
LEVERS = ["checkpointing=true", "one_graph=true", "cache_opponent=true", "channels_last=true", 'precision="fp16"',
          'quantize="int8"', 'quantize="nf4"', 'attention="sdpa"']  # fmt: skip


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    """A measurement holds a larger card to the memory that its preset names."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@cache
def measured(name: str, *pins: str) -> Figures:
    return bench(load_settings(name, pins), 3 if torch.cuda.is_available() else 1, 1, lambda done, of: None)


def plan_is_right(found: Figures) -> None:
    rows = [row for row in found.phases + found.ways if row.planned and row.peak]
    assert len(rows) >= len(found.phases)
    for row in rows:
        assert row.planned == pytest.approx(row.peak, rel=APART), row.name


def learning_is_as_cheap_as_promised(found: Figures, targets: Any = TARGETS) -> None:
    ways = {row.name: row for row in found.ways}
    for name, most_time, most_peak in targets:
        against = ratio(ways[name], ways[SFT_WAY])
        assert against and against[0] <= most_time, name
        assert most_peak is None or against[1] <= most_peak, name


def runs_in_the_cards_memory(found: Figures, vram: float) -> None:
    assert found.limit == vram
    for row in found.phases:
        assert row.seconds and row.peak and row.peak < vram * 2**30, f"{row.name} does not fit"


SMALL = ("learn.batch=2", "play.steps=6", 'learn.optimizer="adamw"')


def test_on_a_cpu_the_plan_is_what_is_measured():
    """And the other checks of a card do their work on its figures."""
    found = measured("demo", *SMALL, "memory.checkpointing=true", "memory.one_graph=true", 'memory.quantize="int8"')
    plan_is_right(found)
    learning_is_as_cheap_as_promised(found, [(ONE_GRAPH, 100, 1.3)])
    with pytest.raises(AssertionError):
        learning_is_as_cheap_as_promised(found, [(ONE_GRAPH, 100, 0.9)])
    with pytest.raises(AssertionError):
        plan_is_right(replace(found, phases=[replace(row, planned=row.peak * 2) for row in found.phases if row.peak]))
    runs_in_the_cards_memory(replace(found, limit=1.0), 1.0)
    with pytest.raises(AssertionError, match="encode does not fit"):
        runs_in_the_cards_memory(replace(found, limit=1e-3), 1e-3)


@pytest.mark.parametrize("name", [pytest.param(name, marks=CARD) for name in NAMES])
def test_a_preset_runs_in_its_cards_memory_and_takes_what_was_planned(name: str):
    found = measured(name)
    runs_in_the_cards_memory(found, load_settings(name).memory.vram or 0)
    plan_is_right(found)


@pytest.mark.parametrize("lever", [pytest.param(lever, marks=CARD) for lever in LEVERS])
@pytest.mark.parametrize("name", ["sd15-24gb", "sdxl-24gb"])
def test_the_plan_is_right_for_each_lever(name: str, lever: str):
    plan_is_right(measured(name, f"memory.{lever}"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=CARD) for name in ("sd15-24gb", "sdxl-24gb")])
def test_learning_from_a_pair_costs_what_is_promised(name: str):
    learning_is_as_cheap_as_promised(measured(name))


def small(base: Path, where: str, **levers: Any) -> tuple[Family, Slots, Batch]:
    """A small network with two LoRAs, and a batch for it that is still on the CPU."""
    found = load_family(Model(base=str(base)), Device(torch.device(where), "a test", Levers(**levers)))
    slots = Slots(found.net, found.lora_targets["all"], rank=4, alpha=4.0, seed=1)
    torch.manual_seed(5)
    for who in ("policy", "opponent"):
        slots.load(who, {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state(who).items()})
    real, fake, eps = (torch.randn(2, *found.latent_shape) for _ in range(3))
    cond = found.encode_captions(["a cat", "two dogs"])
    return found, slots, Batch(real, fake, eps, torch.tensor([50, 900]), cond)


def on(where: str, batch: Batch) -> Batch:
    """The batch on the device."""
    place = torch.device(where)
    moved = {name: upload(getattr(batch, name), place) for name in ("real", "fake", "eps", "t")}
    return replace(batch, **moved, cond={name: upload(value, place) for name, value in batch.cond.items()})


def slopes(base: Path, where: str, **levers: Any) -> Tensor:
    """The gradient of a step on a small network, all of it in a row."""
    found, slots, batch = small(base, where, **levers)
    step(found, slots, SPIN(beta=30.0), on(where, batch), levers.get("one_graph", False))
    return torch.cat([p.grad.flatten().double().cpu() for p in slots.parameters() if p.grad is not None])


@contextlib.contextmanager
def nobody_waits(where: str) -> Iterator[None]:
    """Within the block the host may not wait for the device. On a CPU only reading is seen."""
    if where == "cpu":
        with NothingRead():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=CARD)])
@pytest.mark.parametrize(("kind", "method"), [("sdxl", SFT()), ("sd15", SPIN()), ("sd15", SePPO()), ("sdxl", KTO())], ids=str)
def test_an_update_makes_the_host_wait_for_nothing(kind: str, method: Method, where: str, tiny_bases: Path):
    """The first one puts on the card what stays there, such as the optimizer's state."""
    found, slots, drawn = small(tiny_bases / kind, where, precision="bf16")
    optimizer = Device(torch.device(where), "a test").optimizer("adamw8bit", slots.parameters(), 1e-4)
    clipping, average = Clipping(None, slots.parameters()), Average(0.9, slots.parameters())
    for turn in (1, 2):
        with nobody_waits(where) if turn == 2 else contextlib.nullcontext():
            optimizer.zero_grad(set_to_none=True)
            made = add_gradient(
                found, slots, method, [on(where, drawn)], Levers(), Learn(batch=2), LearnState(), clipping
            )  # fmt: skip
            optimizer.step()
            average.update(turn)
    assert made.norm > 0


ON: list[tuple[dict[str, Any], float]] = [
    ({}, 0.01), ({"precision": "bf16"}, 0.1), ({"precision": "fp16"}, 0.02), ({"checkpointing": True}, 0.01),
    ({"one_graph": True}, 0.01), ({"channels_last": True}, 0.01), ({"quantize": "int8"}, 0.01), ({"quantize": "nf4"}, 0.01),
]  # fmt: skip


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=CARD)])
@pytest.mark.parametrize(("levers", "most"), ON, ids=str)
def test_a_lever_leaves_the_gradient_as_it_is(levers: dict[str, Any], most: float, where: str, tiny_bases: Path):
    """On the card too, where the reference is a CPU's without levers; of the same base, where that is quantised."""
    with_ = slopes(tiny_bases / "sd15", where, **levers)
    without = slopes(tiny_bases / "sd15", "cpu", quantize=levers.get("quantize", "none"))
    assert without.norm() > 0 and (with_ - without).norm() < most * without.norm()


@pytest.mark.parametrize("precision", [pytest.param(name, marks=CARD) for name in ("fp16", "bf16")])
def test_xformers_leaves_the_gradient_as_it_is(precision: str, tiny_bases: Path):
    pytest.importorskip("xformers")
    with_ = slopes(tiny_bases / "sd15", "cuda", precision=precision, attention="xformers")
    without = slopes(tiny_bases / "sd15", "cuda", precision=precision, attention="sdpa")
    assert (with_ - without).norm() < 0.1 * without.norm()


@pytest.mark.parametrize("method", [pytest.param(each, marks=CARD) for each in (SFT(), SPIN())], ids=str)
def test_a_step_can_be_captured_as_a_cuda_graph(method: Method, tiny_bases: Path):
    """Played back, it leaves the gradient that it left before. The first steps, on a stream of their own, set up libraries."""
    found, slots, drawn = small(tiny_bases / "sd15", "cuda", precision="bf16")
    batch, graph, aside = on("cuda", drawn), torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def run() -> None:
        for parameter in slots.parameters():
            parameter.grad = None
        step(found, slots, method, batch, False)

    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    before = [p.grad.clone() for p in slots.parameters() if p.grad is not None]
    with torch.cuda.graph(graph):
        run()
    captured = [p.grad for p in slots.parameters() if p.grad is not None]
    for gradient in captured:
        gradient.zero_()
    graph.replay()
    assert before and all(torch.allclose(a, b, rtol=0.05, atol=1e-4) for a, b in zip(before, captured, strict=True))
