"""A preset's phases and the ways of learning, run and measured on this device."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from spinlite.bench.phases import PhaseCalls
from spinlite.bench.turns import Call, Row, measure_in_turns
from spinlite.bench.ways import AHEAD, AT_ONCE, LIVE, ONE_GRAPH, SFT_WAY, Ways, weights
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.start import make_slots
from spinlite.memory.device import Levers, choose_device
from spinlite.plan.card import Card, measure_card
from spinlite.plan.make import plan_device
from spinlite.plan.phase_costs import PICTURES, PhaseCosts, Workload
from spinlite.plan.plan import HELDOUT, TRAIN, cache_folder

WORK = 50  # forwards: about what one turn of everything costs
SMALLEST = 8  # side of the latents below which nothing is halved


@dataclass(frozen=True)
class Figures:
    """What was measured, and on what. Sizes in pixels (width, height)."""

    title: str
    device: str
    size: tuple[int, int]
    real_size: tuple[int, int]  # the preset's
    samples: int  # at once while learning
    batch: int  # an update's, the preset's
    limit: float | None  # GB that a larger card was held to
    levers: dict[str, Any]
    left_out: list[str]
    phases: list[Row]
    ways: list[Row]


def bench(settings: Settings, steps: int, seconds: float, progress: Callable[[int, int], None]) -> Figures:
    """Run every phase and way `steps` times, after once to warm up and once to meter, on random weights.

    On a CUDA card at the preset's own size and memory, with the levers of its plan. Elsewhere the batch, then the pictures, are
    halved until it all fits into about `seconds`. Raises SpinliteError where the network does not fit into memory.
    """
    settings = settings.model_copy(update={"model": with_random_weights(settings.model)})
    where = choose_device(settings.memory)
    limit = _limit(settings, where.device)
    on_card = where.device.type == "cuda"
    if on_card:
        where, _ = plan_device("bench", settings, where, TRAIN, HELDOUT, cache_folder())
    levers = where.levers
    whole = PhaseCosts(settings, levers.precision, levers.quantize, None, "bench")
    if not on_card:
        _refuse_too_large(settings, whole)
    base = load_family(settings.model, where)
    opponent = copy.deepcopy(base.net).to("cpu") if _room_for_two(base.net) else None
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)
    samples, shape, left_out = levers.micro_batch or settings.learn.batch, base.latent_shape, []
    if not on_card:
        samples, shape, left_out = _size(base, settings, whole, measure_card(where), steps, seconds)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        progress(done, (steps + 2) * (12 if opponent else 11))

    def measured(calls: list[Call]) -> list[Row]:
        return measure_in_turns(calls, steps, where.device, lambda: weights(base.net), told)

    cut = Workload(shape, _pixels(base, shape), PICTURES if on_card else 1)
    stage = whole if on_card else PhaseCosts(settings, levers.precision, levers.quantize, None, "bench", cut)
    rehearsal = PhaseCalls(base, slots, settings, where, samples, cut, stage)
    phases = [row for call in (rehearsal.encode(), rehearsal.captions()) for row in measured([call])]
    batch = rehearsal.batch()
    base.free()
    for call in (rehearsal.play(batch), rehearsal.learn(batch), rehearsal.judge(batch), rehearsal.sheet(batch)):
        phases += measured([call])
    if opponent is None:
        left_out.append("the plain way: this computer has no room for a second network")
    calls = Ways(base, slots, rehearsal.optimizer(), batch, opponent).calls()
    planned = way_bytes(stage, levers, samples)
    ways = measured([replace(call, planned=planned.get(call.name)) for call in calls])
    return Figures(
        base.title, str(where), cut.size, base.size, samples, settings.learn.batch, limit, asdict(levers), left_out,
        phases, ways,
    )  # fmt: skip


def way_bytes(stage: PhaseCosts, levers: Levers, samples: int) -> dict[str, int]:
    """What each way to learn should take, by its name; the plain way is none of spinlite's."""
    rows = {SFT_WAY: (1, False, False), ONE_GRAPH: (2, False, True), AT_ONCE: (2, False, False), LIVE: (2, True, True)}
    found = {
        name: stage.learning(mine, live, replace(levers, one_graph=one_graph, micro_batch=None), samples)
        for name, (mine, live, one_graph) in rows.items()
    }
    return found | {AHEAD: stage.measuring(samples) + stage.sizes.states}


def _pixels(base: Family, shape: tuple[int, ...]) -> tuple[int, int]:
    """The size of pictures of latents of that shape."""
    if shape == base.latent_shape:
        return base.size
    factor = base.size[0] // base.latent_shape[-1]
    return shape[-1] * factor, shape[-2] * factor


def _size(
    base: Family, settings: Settings, whole: PhaseCosts, card: Card, steps: int, seconds: float
) -> tuple[int, tuple[int, ...], list[str]]:
    """(samples at once, shape of a latent, what differs from the preset): what a CPU computes in the time, by the plan."""
    wanted = min(settings.memory.micro_batch or settings.learn.batch, settings.learn.batch)
    samples, shape = wanted, base.latent_shape

    def forward() -> float:
        share = math.prod(shape) / math.prod(base.latent_shape)
        return whole.forward.seconds(share * samples, card.operations, card.bytes, card.start)

    while len(shape) == 3 and forward() * WORK * (steps + 2) > seconds:
        if samples > 1:
            samples //= 2
        elif shape[-1] > SMALLEST:
            shape = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
        else:
            break
    named = settings.memory.vram
    left_out = [f"the levers that the plan chooses for {named:g} GB: those of a CPU here"] if named else []
    if samples < wanted:
        left_out.append(f"{wanted} samples at once, as the preset has it: {samples} here, for time")
    if shape != base.latent_shape:
        width, height = base.size
        left_out.append(f"pictures of {width}x{height} px, as the preset has it: smaller here, for time (--seconds)")
    return samples, shape, left_out


def _refuse_too_large(settings: Settings, whole: PhaseCosts) -> None:
    """Raises SpinliteError where the computer's memory does not hold the network: there the system ends programs unasked."""
    needed, free = 1.2 * whole.net, psutil.virtual_memory().available
    if needed > free:
        raise SpinliteError(
            f"{settings.model.base} takes {needed / 2**30:.1f} GB, and this computer has {free / 2**30:.1f} GB free",
            fix="close other programs, or add --set memory.precision=bf16 (slow on a CPU)",
        )


def _room_for_two(net: nn.Module) -> bool:
    """Whether the computer's memory holds a copy of a network, and half as much again to work with."""
    return psutil.virtual_memory().available > 1.5 * sum(w.numel() * w.element_size() for w in weights(net))


def _limit(settings: Settings, device: torch.device) -> float | None:
    """Hold a CUDA card to the memory that the preset is made for; returns it in GB where that is less than there is."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    wanted = (settings.memory.vram or 0) * 2**30
    if not 0 < wanted < total:
        return None
    torch.cuda.set_per_process_memory_fraction(wanted / total, device)
    return settings.memory.vram
