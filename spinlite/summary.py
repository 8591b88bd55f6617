"""What a run tells people before it starts, and who is told."""

from collections.abc import Sequence
from dataclasses import asdict

from spinlite.config.settings import Settings
from spinlite.data.records import Record, Survey, list_names
from spinlite.data.sources import describe_sources, sources_of
from spinlite.families.family import Family
from spinlite.memory.device import Levers
from spinlite.methods.registry import Method
from spinlite.plan.plan import Plan

GIB = 2**30
UNCAPTIONED = {
    "skip": "left out", "name": "captioned by their file names", "fixed": "captioned by data.caption", "error": "left out",
}  # fmt: skip
FEW_STEP = ("lcm", "tcd", "LCMScheduler", "TCDScheduler")  # samplers for distilled models
FEW = 8  # steps below which no sampler follows an undistilled model
NOT_ITS = "hard negatives for a start, but the loss then compares with a model that did not make them"


def describe_duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def warnings(found: Survey, settings: Settings) -> list[str]:
    """A line for each thing about the data that a user would not expect."""
    lines = []
    if found.uncaptioned:
        rules = {UNCAPTIONED[source.uncaptioned] for source in sources_of(settings.data)}
        what = " or ".join(sorted(rules))
        lines.append(f"{len(found.uncaptioned)} pictures without caption, {what}: {list_names(found.uncaptioned)}")
    if found.orphans:
        lines.append(f"{len(found.orphans)} captions without a picture, ignored: {list_names(found.orphans)}")
    if found.unusable:
        count = len(found.unusable)
        lines.append(f"{count} file{'s' * (count > 1)} can't be used: {list_names(found.unusable)}")
    if settings.play.sampler in FEW_STEP or settings.play.steps < FEW:
        said = f"fakes of {settings.play.steps} steps by {settings.play.sampler} are not the opponent's own"
        lines.append(f"{said}: {NOT_ITS}")
    return lines + found.notes


def describe_levers(play: Levers, learn: Levers, batch: int) -> str:
    """The memory levers that matter, in words: those of play and of learning, whose batch holds so many samples."""
    base = {"none": [], "int8": ["base in 8 bits"], "nf4": ["base in 4 bits"]}[learn.quantize]
    words = [*base, f"play {play.play_batch} at once", f"learn {min(learn.micro_batch or batch, batch)} of {batch} at once"]
    words += ["one graph at a time"] * learn.one_graph + ["checkpointing"] * learn.checkpointing
    words += ["the opponent measured ahead"] * learn.cache_opponent
    return ", ".join(words)


def explain_plan(plan: Plan) -> str:
    """Why the plan chose the levers that it did, in words."""
    phase = max(plan.memory, key=lambda name: plan.memory[name])
    fits = sum(row["fits"] for row in plan.tried)
    words = f"{plan.peak / GIB:.1f} of {plan.limit / GIB:.1f} GB at the most ({phase})"
    words += f", the fastest of {fits} ways that fit" if fits > 1 else ""
    full = [max(row["memory"].values()) for row in plan.tried if row["levers"]["quantize"] == "none"]
    if full and plan.levers["quantize"] != "none":
        words += f"; the base in full would need {min(full) / GIB:.1f} GB"
    return words


def count_pictures(records: Sequence[Record]) -> int:
    """How many there are, however many captions they have."""
    return len({(r.key, r.lose_key) for r in records})


def run_facts(settings: Settings, base: Family, found: Survey, method: Method, where: str) -> dict[str, str]:
    """What the run will do, by what it is about."""
    learning = settings.learn
    against = {"base": "the base", "previous": "the previous snapshot", "random": "a random earlier snapshot",
               "each": "a random earlier snapshot for each picture"}  # fmt: skip
    opponent = f" against {against[method.opponent]}" if method.opponent else " (no opponent)"
    values = ", ".join(f"{key} {f'{value:g}' if isinstance(value, float) else value}" for key, value in asdict(method).items())
    width, height = base.size
    train, heldout = count_pictures(found.train), count_pictures(found.heldout)
    shapes = len({r.bucket for r in found.train + found.heldout})
    shaped = f", in {shapes} shapes" if shapes > 1 else ""
    return {
        "model": f"{base.title}, {width}x{height} px",
        "data": f"{train} pictures to learn from, {heldout} held out{shaped} ({describe_sources(settings.data)})",
        "captions": ", ".join(f"{count} from {origin}" for origin, count in found.origins.most_common()),
        "method": f"{type(method).__name__}{opponent}{': ' * bool(values)}{values}",
        "rounds": f"{settings.run.rounds} of {learning.updates} updates, {learning.batch} samples each",
        "LoRA": f"rank {settings.model.rank} on {settings.model.targets} layers",
        "device": where,
        "attention": base.attention,
    }
