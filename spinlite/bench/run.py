"""Measures the phases of a preset and the ways to learn on this device."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from spinlite.bench.diffusers_way import DiffusersWay
from spinlite.bench.phases import PhaseCalls
from spinlite.bench.profile import Profiles, lora_cost, profile
from spinlite.bench.turns import Call, Row, measure_in_turns
from spinlite.bench.ways import DIFFUSERS, DPO_WAY, FAST, LIVE, ONE_GRAPH, OPPONENT_FIRST, SFT_WAY, TWO_NETWORKS, Ways, weights
from spinlite.config.rounds import with_pictures
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.lora.start import make_slots
from spinlite.maths.draws import gaussian
from spinlite.memory.device import Device, Levers, choose_device
from spinlite.plan.card import Card, measure_card
from spinlite.plan.make import plan_device
from spinlite.plan.phase_costs import PhaseCosts, Workload, at_once
from spinlite.plan.plan import HELDOUT, TRAIN, cache_folder
from spinlite.progress import GIB, describe_size
from spinlite.training.batches import Batch

WORK = 50  # forward passes: about the cost of one turn of everything
SMALLEST = 8  # latents of this side are not halved again


@dataclass(frozen=True)
class Figures:
    """What was measured, and on which device. Sizes of pictures are (width, height) in pixels."""

    title: str
    device: str
    size: tuple[int, int]
    real_size: tuple[int, int]  # the preset's
    samples: int  # per step, here
    batch: int  # per update, in the preset
    limit: float | None  # GB, if a larger card was limited to that
    levers: dict[str, Any]
    left_out: list[str]
    phases: list[Row]
    ways: list[Row]
    seen: float  # times that a round shows each of 100 pictures
    profiles: Profiles  # empty if they were not asked for


def bench(
    settings: Settings, steps: int, seconds: float, progress: Callable[[int, int], None], profiled: bool = False
) -> Figures:  # fmt: skip
    """Measure every phase and every way to learn, with random weights: `steps` times each, after a warm-up and a memory run.

    A CUDA card runs the preset's own sizes within the preset's VRAM, with the memory settings of its plan. On a CPU the batch,
    then the pictures, are halved until all fits into about `seconds`. If `profiled`, it also finds where the time goes. Raises
    SpinliteError if the network does not fit.
    """
    settings = settings.model_copy(update={"model": with_random_weights(settings.model)})
    where, limit, costs = _choose(settings)
    levers, on_card = where.levers, where.device.type == "cuda"
    base = load_family(settings.model, where)
    opponent, peer = _copies(base.net, where.device)
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)
    _move(slots)
    samples, shape, left_out = levers.micro_batch or settings.learn.batch, base.latent_shape, []
    if not on_card:
        samples, shape, left_out = _shrink(base, settings, costs, measure_card(where), steps, seconds)
    workload = Workload(shape, _pixels(base, shape), at_once(base) if on_card else 1)
    if not on_card:
        costs = PhaseCosts(settings, levers.precision, levers.quantize, None, workload)
    calls = PhaseCalls(base, slots, settings, where, samples, workload, costs)
    kinds = 12 + (opponent is not None) + (peer is not None)
    measure = _measurer(base, steps, where, (steps + 2) * kinds, progress)
    phases, batch = _measure_phases(calls, measure)
    for name, net in ((TWO_NETWORKS, opponent), (DIFFUSERS, peer)):
        left_out += [f"{name}: this computer has no room for its network"] if net is None else []
    planned, kind = way_bytes(costs, levers, samples), settings.learn.optimizer
    peers = DiffusersWay(base, peer, slots.modules, settings.model.rank, where, kind) if peer is not None else None
    ways = Ways(base, slots, calls.optimizer(), batch, opponent, peers, levers.merge).calls()
    rows = measure([replace(call, planned=planned.get(call.name)) for call in ways])
    found = Profiles()
    if profiled:
        found = Profiles(profile(ways, where.device), lora_cost(base, slots, batch, 3 * steps, where.device))
    return Figures(
        base.title, str(where), workload.size, base.size, samples, settings.learn.batch, limit, asdict(levers), left_out,
        phases, rows, _times_seen(settings), found,
    )  # fmt: skip


def _copies(net: nn.Module, device: torch.device) -> tuple[nn.Module | None, nn.Module | None]:
    """Two copies of the network in RAM, as far as there is room. It leaves its device meanwhile, where a copy has none."""
    net.to("cpu")
    opponent, peer = (copy.deepcopy(net) if _has_room(net, more) else None for more in (1, 2))
    net.to(device)
    return opponent, peer


def _choose(settings: Settings) -> tuple[Device, float | None, PhaseCosts]:
    """The device with its memory settings, the limit of its memory in GB, and what the preset costs there."""
    where = choose_device(settings.memory)
    limit = _limit(settings, where.device)
    on_card = where.device.type == "cuda"
    if on_card:
        where, _ = plan_device("bench", settings, where, TRAIN, HELDOUT, cache_folder())
    costs = PhaseCosts(settings, where.levers.precision, where.levers.quantize, None)
    if not on_card:
        _refuse_too_large(settings, costs)
    return where, limit, costs


def _measurer(
    base: Family, steps: int, where: Device, total: int, progress: Callable[[int, int], None]
) -> Callable[[list[Call]], list[Row]]:
    """A function that measures calls in turns, and reports each run as one of `total`."""
    done = 0

    def report_run() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return lambda calls: measure_in_turns(calls, steps, where.device, lambda: weights(base.net), report_run)


def _measure_phases(calls: PhaseCalls, measure: Callable[[list[Call]], list[Row]]) -> tuple[list[Row], Batch]:
    """The phases of a round, one after the other as in a run; also the batch that the later ones used."""
    rows = [row for call in (calls.encode(), calls.captions()) for row in measure([call])]
    batch = calls.batch()
    calls.family.free()
    for call in (calls.play(batch), calls.learn(batch), calls.judge(batch), calls.sheet(batch)):
        rows += measure([call])
    return rows, batch


def way_bytes(costs: PhaseCosts, levers: Levers, samples: int) -> dict[str, int]:
    """The planned peak of each way to learn, in bytes by name. Those with a network of their own have none."""
    rows = {SFT_WAY: (1, False, False), ONE_GRAPH: (2, False, True), FAST: (2, False, False), LIVE: (2, True, True),
            DPO_WAY: (2, True, False)}  # fmt: skip
    peaks = {
        name: costs.learning(policy_errors, live, replace(levers, one_graph=one_graph, micro_batch=None), samples)
        for name, (policy_errors, live, one_graph) in rows.items()
    }
    return peaks | {OPPONENT_FIRST: costs.measuring(samples) + costs.sizes.states}


def _pixels(base: Family, shape: tuple[int, ...]) -> tuple[int, int]:
    """The (width, height) of a picture with latents of this shape."""
    if shape == base.latent_shape:
        return base.size
    factor = base.size[0] // base.latent_shape[-1]
    return shape[-1] * factor, shape[-2] * factor


def _shrink(
    base: Family, settings: Settings, costs: PhaseCosts, card: Card, steps: int, seconds: float
) -> tuple[int, tuple[int, ...], list[str]]:
    """(samples per step, shape of a latent, what differs from the preset): by the plan, what a CPU computes in the time."""
    full = min(settings.memory.micro_batch or settings.learn.batch, settings.learn.batch)
    samples, shape = full, base.latent_shape

    def forward() -> float:
        share = math.prod(shape) / math.prod(base.latent_shape)
        return costs.forward(samples).seconds(share * samples, card.operations, card.bytes, card.start)

    while len(shape) >= 3 and forward() * WORK * (steps + 2) > seconds:
        if samples > 1:
            samples //= 2
        elif min(shape[-2:]) > SMALLEST and not any(side % 4 for side in shape[-2:]):  # a network may read 2 x 2 as one
            shape = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
        else:
            break
    vram = settings.memory.vram
    left_out = [f"the memory settings that the plan chooses for {vram:g} GB: here those for a CPU"] if vram else []
    if samples < full:
        left_out.append(f"the preset's {full} samples per step: here {samples}, to save time (--seconds)")
    if shape != base.latent_shape:
        full_size, size = (f"{width}x{height}" for width, height in (base.size, _pixels(base, shape)))
        left_out.append(f"the preset's pictures of {full_size} px: here {size}, to save time (--seconds)")
    return samples, shape, left_out


def _refuse_too_large(settings: Settings, costs: PhaseCosts) -> None:
    """Raises SpinliteError if the network does not fit into RAM, where the system would end programs without asking."""
    needed, free = 1.2 * costs.net, psutil.virtual_memory().available
    if needed > free:
        raise SpinliteError(
            f"{settings.model.base} takes {describe_size(needed)}, and this computer has {describe_size(free)} free",
            fix="close other programs, or add --set memory.precision=bf16 (slow on a CPU)",
        )


def _has_room(net: nn.Module, copies: int) -> bool:
    """Whether the RAM holds so many copies of a network, and half of one to work with."""
    return psutil.virtual_memory().available > (copies + 0.5) * sum(w.numel() * w.element_size() for w in weights(net))


def _move(slots: Slots) -> None:
    """Move both LoRAs away from zero, as after a first round: a zero one takes no work."""
    for who in ("policy", "opponent"):
        slots.load(who, {k: v + 1e-3 * gaussian(tuple(v.shape), "bench", who, k) for k, v in slots.state(who).items()})


def _times_seen(settings: Settings) -> float:
    learn = with_pictures(settings, TRAIN, HELDOUT).learn
    return learn.length * learn.batch / TRAIN


def _limit(settings: Settings, device: torch.device) -> float | None:
    """Limit a CUDA card to the VRAM that the preset is made for; returns that in GB (2^30 bytes) if the card has more."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    vram = (settings.memory.vram or 0) * GIB
    if not 0 < vram < total:
        return None
    torch.cuda.set_per_process_memory_fraction(vram / total)
    return settings.memory.vram
