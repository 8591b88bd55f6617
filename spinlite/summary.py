"""What a run tells people before it starts: its facts, its memory settings and its warnings."""

from dataclasses import asdict

from spinlite.config.rounds import describe_round
from spinlite.config.settings import Settings
from spinlite.data.records import Survey, count_pictures, list_names
from spinlite.data.sources import describe_sources, sources_of
from spinlite.data.split import explain_few
from spinlite.families.family import Family
from spinlite.families.syntax import find_syntax
from spinlite.memory.device import Levers
from spinlite.methods.registry import Method
from spinlite.plan.plan import Plan
from spinlite.progress import GIB

UNCAPTIONED = {
    "skip": "left out", "name": "captioned by their file names", "fixed": "captioned by data.caption", "error": "left out",
}  # fmt: skip
FEW_STEP = ("lcm", "tcd", "LCMScheduler", "TCDScheduler")  # samplers for distilled models


def warnings(survey: Survey, settings: Settings) -> list[str]:
    """A line for each thing about the data or the fakes that a user would not expect."""
    lines = []
    if survey.uncaptioned:
        rules = {UNCAPTIONED[source.uncaptioned] for source in sources_of(settings.data)}
        treatment = " or ".join(sorted(rules))
        lines.append(f"{len(survey.uncaptioned)} pictures without caption, {treatment}: {list_names(survey.uncaptioned)}")
    if survey.orphans:
        lines.append(f"{len(survey.orphans)} captions without a picture, ignored: {list_names(survey.orphans)}")
    if survey.unusable:
        count = len(survey.unusable)
        lines.append(f"{count} file{'s' * (count > 1)} can't be used: {list_names(survey.unusable)}")
    if settings.model.base == "demo" and any(source.folder not in (None, "demo") for source in sources_of(settings.data)):
        lines.append(
            "These are your own pictures on the demo's model, which draws emoji at 64 px: no other program has that model. To "
            "get a LoRA that you can use, name your checkpoint: --base MODEL.safetensors"
        )
    if few := explain_few(survey.heldout):
        lines.append(few)
    for what, examples in find_syntax({r.caption: None for r in survey.train + survey.heldout}).items():
        held = f"{len(examples)} caption{'s hold' if len(examples) > 1 else ' holds'}"
        lines.append(f"{held} {what} such as {list_names(examples[:1])}: they are learned as plain text")
    if settings.play.sampler in FEW_STEP:
        lines.append(
            f"play.sampler = {settings.play.sampler} is made for distilled models. With any other base, the model's own "
            "pictures come out broken, and it learns from those. Use dpm++."
        )
    return lines + survey.notes


def describe_levers(play: Levers, learn: Levers, batch: int) -> str:
    """The memory settings that matter, in words: for play, and for learning with `batch` samples per update."""
    base = {"none": [], "int8": ["base in 8 bits"], "nf4": ["base in 4 bits"]}[learn.quantize]
    samples = min(learn.micro_batch or batch, batch)
    words = [*base, f"play {play.play_batch} samples per batch", f"learn {samples} of {batch} samples per step"]
    words += ["saves memory: one activation graph at a time"] * learn.one_graph + ["checkpointing"] * learn.checkpointing
    words += ["opponent measured first"] * learn.cache_opponent
    return ", ".join(words)


def explain_plan(plan: Plan) -> str:
    """Why the plan chose its memory settings, in words."""
    phase = max(plan.memory, key=lambda name: plan.memory[name])
    fits = sum(row["fits"] for row in plan.tried)
    words = f"{plan.peak / GIB:.1f} of {plan.limit / GIB:.1f} GB at most ({phase})"
    words += f", the fastest of {fits} ways that fit" if fits > 1 else ""
    full = [max(row["memory"].values()) for row in plan.tried if row["levers"]["quantize"] == "none"]
    if full and plan.levers["quantize"] != "none":
        words += f"; the base in full precision would need {min(full) / GIB:.1f} GB"
    return words


def run_facts(settings: Settings, base: Family, survey: Survey, method: Method, where: str) -> dict[str, str]:
    """What the run will do: heading -> fact. `where` names the device."""
    against = {"base": "the base", "previous": "the previous snapshot", "random": "a random earlier snapshot",
               "each": "a random earlier snapshot for each picture"}  # fmt: skip
    opponent = f" against {against[method.opponent]}" if method.opponent else " (no opponent)"
    values = ", ".join(f"{key} {f'{value:g}' if isinstance(value, float) else value}" for key, value in asdict(method).items())
    width, height = base.size
    train, heldout = count_pictures(survey.train), count_pictures(survey.heldout)
    shape_count = len({r.bucket for r in survey.train + survey.heldout})
    chunks = base.count_chunks(list({r.caption: None for r in survey.train + survey.heldout}))
    long = f"; the longest takes {chunks} chunks of tokens, so all have {chunks}" if chunks > 1 else ""
    thing, frames = ("clip", f"{base.clips.most} frames of ") if base.clips else ("picture", "")
    shapes = f", in {shape_count} shapes" if shape_count > 1 else ""
    return {
        "model": f"{base.title}, {frames}{width}x{height} px",
        **({"note": base.note} if base.note else {}),
        "data": f"{train} {thing}s to learn from, {heldout} for validation{shapes} ({describe_sources(settings.data)})",
        "captions": ", ".join(f"{count} from {origin}" for origin, count in survey.origins.most_common()) + long,
        "method": f"{type(method).__name__}{opponent}{': ' * bool(values)}{values}",
        "rounds": f"{settings.run.rounds} of {describe_round(settings.learn, train, thing)}",
        "LoRA": f"rank {settings.model.rank} on {settings.model.targets} layers",
        "device": where,
        "attention": base.attention,
    }
