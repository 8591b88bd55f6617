"""A plan, made: the preset's networks rehearsed, the levers chosen, disk and RAM counted."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from spinlite.config.settings import Settings
from spinlite.families.blank import with_random_weights
from spinlite.memory.device import Device, Levers, choose_device
from spinlite.plan.card import CONTEXT, FRAGMENTS, GIB, PYTHON, Card, measure_card, typical_card
from spinlite.plan.fit import Combination, Fit
from spinlite.plan.phase_costs import PhaseCosts
from spinlite.plan.plan import Plan, cache_name


def card_for(settings: Settings, vram: float | None) -> Card:
    """The card asked for, or the one that the preset names, or the device at hand with what is free on it."""
    named = vram or settings.memory.vram
    card = typical_card(named) if named else measure_card(choose_device(settings.memory))
    return replace(card, precision=settings.memory.precision or card.precision)


def plan_device(
    preset: str, settings: Settings, where: Device, train: int, heldout: int, shelf: Path | None, kept: Levers | None = None
) -> tuple[Device, Plan]:
    """The device with the levers that the plan chooses for what is free on it, [memory].vram at the most; and that plan.

    `kept`: those to go on with as long as they fit. Raises SpinliteError where nothing fits.
    """
    plan = make_plan(preset, settings, measure_card(where, settings.memory.vram), train, heldout, shelf, kept)
    return replace(where, levers=Levers(**plan.levers)), plan


def make_plan(
    preset: str, settings: Settings, card: Card, train: int, heldout: int, shelf: Path | None, kept: Levers | None = None
) -> Plan:
    """The plan for so many pictures. What was rehearsed is kept on the shelf. Raises SpinliteError where nothing fits."""
    method = settings.build_method()

    @cache
    def stages(precision: str, quantize: str) -> PhaseCosts:
        model = with_random_weights(settings.model).model_dump(
            exclude={"alpha", "prediction", "zero_snr"}
        )  # these take no memory
        name = cache_name("stage", model, settings.learn.optimizer, precision, quantize)
        return PhaseCosts(settings, precision, quantize, shelf, name)

    chosen, tried = Fit(settings, card, stages, train, heldout).choose(kept)
    sizes = stages(chosen.levers.precision, chosen.levers.quantize).sizes
    rounds, lora = settings.run.rounds, 4 * sizes.learnt
    played = method.fakes == "played"
    disk = {
        "encoded": (train + heldout) * (sizes.latent * (1 + settings.data.flip) + sizes.cond),
        "fakes": rounds * (train * played + 2 * heldout) * sizes.latent,
        "snapshots": (rounds + 1) * lora + lora + sizes.states + lora // 2,
    }
    ram = chosen.peak if card.kind == "cpu" else round(max(sizes.weights, 2 * lora) + PYTHON + CONTEXT)
    title = f"{settings.model.base}, {sizes.width}x{sizes.height} px"
    return Plan(
        preset, title, type(method).__name__, card.name, round(card.memory), asdict(chosen.levers), chosen.memory,
        chosen.seconds, rounds, ram, disk, [_row(t, t is chosen, card) for t in tried], _assumed(card),
    )  # fmt: skip


def _row(tried: Combination, chosen: bool, card: Card) -> dict[str, object]:
    fits = tried.peak <= card.memory
    return {"levers": asdict(tried.levers), "memory": tried.memory, "seconds": tried.seconds, "fits": fits, "chosen": chosen}


def _assumed(card: Card) -> list[str]:
    if card.kind == "cpu":
        return [f"{PYTHON / GIB:.1f} GB of the process are an estimate", "times are estimated from short timings of this CPU"]
    lines = [f"{CONTEXT / GIB:.1f} GB of the CUDA context and {FRAGMENTS - 1:.0%} between the allocator's blocks are estimates"]
    if not card.measured:
        lines.append("times are an estimate, for the speed of a typical card of this size, by its maker's figures")
    return lines
