"""The plan against what is measured on a CPU: networks of real width, but of one block of a kind, on few and small samples."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spinlite.bench.meter import measure_peak
from spinlite.config.settings import Learn, Model, Settings
from spinlite.families.family import Family
from spinlite.families.kinds import KINDS
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.lora.layer import Adapted
from spinlite.memory.device import Device, Levers
from spinlite.methods.spin import SPIN
from spinlite.plan.phase_costs import PhaseCosts
from spinlite.training.batches import Batch
from spinlite.training.play import sample
from spinlite.training.step import step

CPU, APART = torch.device("cpu"), 0.03
BATCH, TOKENS, LORA = 1, 16, 16  # pairs of a batch; tokens of a caption; rank


class Case(NamedTuple):
    """What differs from the published model, and what it is measured in: two in fp32 would take more than 2 GB."""

    precision: str
    network: dict[str, int]
    model: dict[str, Any]
    module: str  # the family's, where the length of captions stands


CASES = {
    "wan": Case("fp32", {"num_layers": 1}, {"resolution": 128, "frames": 5}, "wan"),
    "anima": Case("fp32", {"num_layers": 1}, {"resolution": 128}, "anima"),
    "klein-4b": Case("bf16", {"num_layers": 1, "num_single_layers": 1}, {"resolution": 64}, "flux2"),
    "z-image": Case("bf16", {"n_layers": 1, "n_refiner_layers": 1}, {"resolution": 64}, "zimage"),
}


def shorten(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Settings:
    """Settings for a base of this kind with random weights, whose network has fewer blocks and reads shorter captions."""
    case = CASES[kind]
    shutil.copytree(KINDS[kind].folder, folder)
    path = folder / KINDS[kind].net / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | case.network))
    patch.setitem(KINDS, kind, replace(KINDS[kind], configs=str(folder)))
    patch.setattr(f"spinlite.families.{case.module}.LENGTH", TOKENS)
    return Settings(model=Model(base=f"blank:{kind}", rank=LORA, **case.model), learn=Learn(updates=9, batch=BATCH))


def slots_on(base: Family, rank: int) -> Slots:
    """Slots in which neither LoRA is zero: a zero opponent takes no memory."""
    slots = Slots(base.net, base.lora_targets["linear"], rank, rank, 0)
    for who in ("policy", "opponent"):
        slots.load(who, {name: value + 1e-3 for name, value in slots.state(who).items()})
    return slots


def weights(base: Family) -> list[Tensor]:
    """The network's and both slots', and those of the opponent in the precision that they compute in."""
    layers = [module for module in base.net.modules() if isinstance(module, Adapted)]
    ready = [weight for layer in layers for pair in layer.ready.values() for weight in pair]
    return [*base.net.parameters(), *base.net.buffers(), *ready]


def random_batch(base: Family, costs: PhaseCosts, count: int) -> Batch:
    real, fake, eps = (torch.randn(count, *base.latent_shape) for _ in range(3))
    cond = {
        name: torch.randn(count, *value.shape[1:]).to(value.dtype)
        if value.is_floating_point()
        else torch.full((count,), TOKENS)
        for name, value in costs._cond.items()
    }
    return Batch(real, fake, eps, base.path.times(torch.rand(count)), cond)


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def learning(base: Family, slots: Slots, costs: PhaseCosts, levers: Levers, batch: Batch) -> tuple[int, int]:
    """(measured, planned) bytes that a step takes beyond the weights and its batch."""
    assert batch.fake is not None
    given = [batch.real, batch.fake, batch.eps, batch.t, *batch.cond.values()]
    held, s = [*weights(base), *given], costs.sizes
    base.set_checkpointing(levers.checkpointing)
    for parameter in slots.parameters():
        parameter.grad = None
    with measure_peak(CPU, held) as peak:
        step(base, slots, SPIN(), batch, levers.one_graph, levers.micro_batch)
    count = len(batch.t)
    planned = costs.learning(2, True, levers, count) - costs.net - s.states - count * (3 * s.latent + s.cond)
    return peak.bytes - size(held), planned


def playing(base: Family, slots: Slots, costs: PhaseCosts, settings: Settings, batch: Batch) -> tuple[int, int]:
    """(measured, planned) bytes that it takes to draw samples, with guidance, beyond the weights."""
    empty = {name: value.clone() for name, value in batch.cond.items()}
    held = [*weights(base), *batch.cond.values(), *empty.values()]
    play = settings.drawn.model_copy(update={"sampler": "euler", "steps": 2})
    with slots.use("opponent"), measure_peak(CPU, held) as peak:
        sample(base, torch.randn_like(batch.real), batch.cond, empty, play)
    return peak.bytes - size(held), costs.playing(len(batch.t)) - costs.net


WAYS = {
    f"{'one graph' if one_graph else 'at once'}{', checkpointing' * checkpointing}": Levers(
        checkpointing=checkpointing, one_graph=one_graph
    )
    for checkpointing, one_graph in product((False, True), repeat=2)
}


@pytest.mark.parametrize("kind", CASES)
def test_a_network_of_real_width_takes_the_memory_that_was_planned(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings, precision = shorten(kind, tmp_path / kind, monkeypatch), CASES[kind].precision
    costs = PhaseCosts(settings, precision, "none", None)
    base = load_family(settings.model, Device(CPU, "a test", Levers(precision)))
    slots = slots_on(base, LORA)
    assert size(weights(base)) == costs.net
    batch = random_batch(base, costs, BATCH)
    found = {name: learning(base, slots, costs, way, batch) for name, way in WAYS.items()}
    found["play"] = playing(base, slots, costs, settings, batch)
    for name, (measured, planned) in found.items():
        assert planned == pytest.approx(measured, rel=APART), name


def test_a_step_of_a_small_unet_takes_the_memory_that_was_planned(tiny_bases: Path, cache: Path):
    settings = Settings(model=Model(base=str(tiny_bases / "sd15"), rank=4))
    costs = PhaseCosts(settings, "fp32", "none", cache)
    base = load_family(settings.model, Device(CPU, "a test"))
    slots, batch = slots_on(base, 4), random_batch(base, costs, 6)
    for name, way in WAYS.items():
        measured, planned = learning(base, slots, costs, replace(way, micro_batch=3), batch)
        assert planned == pytest.approx(measured, rel=APART), name
