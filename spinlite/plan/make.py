"""Makes a plan: simulates the preset's networks, chooses memory settings, estimates time, RAM and disk."""

import functools
from dataclasses import asdict, replace
from pathlib import Path

from spinlite.config.rounds import with_pictures
from spinlite.config.settings import Settings
from spinlite.memory.device import Device, Levers, choose_device
from spinlite.plan.card import CONTEXT, FRAGMENTS, GIB, PYTHON, Card, measure_card, typical_card
from spinlite.plan.fit import Combination, Fit
from spinlite.plan.phase_costs import PhaseCosts
from spinlite.plan.plan import Plan
from spinlite.progress import describe_size


def card_for(settings: Settings, vram: float | None) -> Card:
    """A card with `vram` GB, or with the preset's memory.vram, or else this computer's device with its free memory."""
    named = vram or settings.memory.vram
    card = typical_card(named) if named else measure_card(choose_device(settings.memory))
    return replace(card, precision=settings.memory.precision or card.precision)


def plan_device(
    preset: str, settings: Settings, where: Device, train: int, heldout: int, cache: Path | None, kept: Levers | None = None
) -> tuple[Device, Plan]:
    """(the device with the memory settings of a plan for its free memory, that plan). memory.vram limits the memory.

    Settings that are `kept` stay as long as they fit. Raises SpinliteError if nothing fits.
    """
    plan = make_plan(preset, settings, measure_card(where, settings.memory.vram), train, heldout, cache, kept)
    return replace(where, levers=Levers(**plan.levers)), plan


def make_plan(
    preset: str, settings: Settings, card: Card, train: int, heldout: int, cache: Path | None, kept: Levers | None = None
) -> Plan:
    """The plan for so many pictures. Simulations are kept in the folder `cache`. Raises SpinliteError if nothing fits."""
    settings, method = with_pictures(settings, train, heldout), settings.build_method()

    @functools.cache
    def costs_of(precision: str, quantize: str) -> PhaseCosts:
        return PhaseCosts(settings, precision, quantize, cache)

    chosen, tried = Fit(settings, card, costs_of, train, heldout).choose(kept)
    sizes = costs_of(chosen.levers.precision, chosen.levers.quantize).sizes
    rounds, lora = settings.run.rounds, 4 * sizes.learnt
    played = method.fakes == "played"
    disk = {
        "encoded": (train + heldout) * (sizes.latent * (1 + settings.data.flip) + sizes.cond),
        "fakes": rounds * (train * played + 2 * heldout) * sizes.latent,
        "snapshots": (rounds + 1) * lora + lora + sizes.states + lora // 2 + lora * (settings.learn.ema > 0),
    }
    ram = chosen.peak if card.kind == "cpu" else round(max(sizes.weights, 2 * lora) + PYTHON + CONTEXT)
    clips = f"{sizes.frames} frames of " if sizes.frames else ""
    title = f"{settings.model.base}, {clips}{sizes.width}x{sizes.height} px"
    return Plan(
        preset, title, type(method).__name__, card.name, round(card.memory), asdict(chosen.levers), chosen.memory,
        chosen.seconds, rounds, ram, disk, [_row(t, t is chosen, card) for t in tried], _assumed(settings, lora, card),
        thing="clip" if sizes.frames else "picture",
    )  # fmt: skip


def _row(tried: Combination, chosen: bool, card: Card) -> dict[str, object]:
    fits = tried.peak <= card.memory
    return {"levers": asdict(tried.levers), "memory": tried.memory, "seconds": tried.seconds, "fits": fits, "chosen": chosen}


def _assumed(settings: Settings, lora: int, card: Card) -> list[str]:
    """What is estimated, and what takes more than it must; `lora` in bytes."""
    average = [f"the average of the weights (learn.ema) takes {describe_size(lora)} of it"] if settings.learn.ema else []
    return average + _estimated(card)


def _estimated(card: Card) -> list[str]:
    if card.kind == "cpu":
        memory = f"{PYTHON / GIB:.1f} GB for the process itself are an estimate"
        return [memory, "times are estimated from short timings of this CPU"]
    lines = [f"{CONTEXT / GIB:.1f} GB for CUDA itself and {FRAGMENTS - 1:.0%} for gaps in memory are estimates"]
    if not card.measured:
        lines.append("times are estimates, for a typical card of this size by its maker's figures")
    return lines
