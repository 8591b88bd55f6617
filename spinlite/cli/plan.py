"""The commands about presets and plans. Nothing here imports torch before a command needs it."""

import os
import re
import sys
from dataclasses import astuple, dataclass, replace
from typing import Annotated, Any

import typer

from spinlite.cli.options import OF_PRESETS, DataFolder, Overrides, Preset, command_line, takes
from spinlite.config.presets import preset_texts, shipped_presets
from spinlite.config.spelling import to_type
from spinlite.plan.plan import HELDOUT, PEAKS, TRAIN, Plan, cache_folder, cache_name, load_plan, save_plan
from spinlite.progress import describe_size

listing = typer.Typer(invoke_without_command=True, help="List the shipped presets.", rich_markup_mode=None)


@takes(*OF_PRESETS)
def plan(
    preset: Preset,
    vram: Annotated[float | None, typer.Option(metavar="GB", min=1, help="plan for a card with this much VRAM")] = None,
    data: DataFolder = None,
    set_: Overrides = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """Estimate VRAM, time and disk. Runs before any download and needs no GPU."""
    from spinlite.cli import plan_screen
    from spinlite.cli.console import Console

    console = Console()
    count = _count(preset, data, set_)
    made = find_plan(preset, vram, data, set_, count, console if not json else None)
    if json:
        typer.echo(plan_screen.as_json(made))
    else:
        plan_screen.show(console.screen, made, count.words.format(things=f"{made.thing}s"), _train_command(preset, data))


def _train_command(preset: str, data: str | None) -> str:
    """The command that trains what was planned: the same words, as `train` takes them."""
    words, skipped = [], iter(sys.argv[2:])
    for word in skipped:
        name, equals, value = word.partition("=")
        if name == "--vram":
            words += to_type("memory.vram", value if equals else next(skipped, "")).split()
        elif word != "--json":
            words.append(word)
    if data is None and not any(re.search(r"(?m)^(folder|dataset) *=", text) for text in preset_texts(preset)):
        words += ["--data", "MY-PICTURES"]
    return command_line(["spinlite", "train", *words])


@dataclass(frozen=True)
class Count:
    """How many pictures, or clips, a run would take; `words` says so, with {things} for either."""

    train: int  # pictures with a caption each, to learn from
    heldout: int
    pictures: int  # to learn from; one may have several captions
    words: str


def find_plan(preset: str, vram: float | None, data: str | None, set_: list[str], count: Count, console: Any) -> Plan:
    """The plan for the card that is named, or for the free memory of this computer; from the cache if it was made before."""
    shelf = cache_folder()
    texts = preset_texts(preset)
    sized = vram or any("vram" in text for text in [*texts, *set_])  # then free memory does not matter
    name = cache_name("plan", preset, texts, set_, vram, astuple(count)[:3], [] if sized else _free_memory())
    if known := load_plan(shelf, name):
        return known
    from spinlite.config.load import load_settings
    from spinlite.config.rounds import describe_round, with_pictures

    settings = with_pictures(load_settings(preset, set_, data__folder=data), count.pictures, count.heldout)
    from spinlite.families.load import note_of
    from spinlite.plan.make import card_for, make_plan

    train, heldout = count.train, count.heldout
    if console:
        with console.screen.status("Working out what fits your card (once per model and settings, up to a minute)"):
            made = make_plan(preset, settings, card_for(settings, vram), train, heldout, shelf)
    else:
        made = make_plan(preset, settings, card_for(settings, vram), train, heldout, shelf)
    made = replace(made, round=describe_round(settings.learn, count.pictures, made.thing), note=note_of(settings.model))
    save_plan(shelf, name, made)
    return made


def _free_memory() -> list[Any]:
    """Free memory, in steps so coarse that they hardly change a plan. Read without torch, which takes seconds to import."""
    import psutil

    from spinlite.doctor.cards import nvidia_smi

    cards = [(card.name, (card.free or 0) // 256) for card in nvidia_smi()[0]]  # MiB
    return [cards, os.environ.get("CUDA_VISIBLE_DEVICES"), psutil.virtual_memory().available // 2**31]


def _count(preset: str, data: str | None, set_: list[str]) -> Count:
    """The pictures as a run would count them; 100 where none are named."""
    from spinlite.config.load import load_settings
    from spinlite.data.records import count_pictures
    from spinlite.data.sources import sources_of
    from spinlite.data.split import explain_few
    from spinlite.data.survey import examine, grid_of

    settings = load_settings(preset, set_, data__folder=data)
    sources = sources_of(settings.data)
    if not sources:
        return Count(TRAIN, HELDOUT, TRAIN, "100 {things} (add --data FOLDER to count yours)")
    if any(source.dataset is not None for source in sources):
        return Count(TRAIN, HELDOUT, TRAIN, "100 {things} (those of a data set are counted when they are fetched)")
    survey = examine(settings.data, settings.build_method().fakes == "given", grid=grid_of(settings), headers=True)
    if survey.stop:
        raise survey.stop
    train, heldout = count_pictures(survey.train), count_pictures(survey.heldout)
    words = f"{train} captioned {{things}} to learn from and {heldout} for validation"
    if few := explain_few(survey.heldout):
        words += f" ({few})"
    return Count(len(survey.train), len(survey.heldout), train, words)


@listing.callback()
def list_presets(context: typer.Context) -> None:
    """List the shipped presets: model, card, planned VRAM, method."""
    if context.invoked_subcommand:
        return
    import json
    import tomllib

    from spinlite.cli.console import Console

    rows, peaks = [], json.loads(PEAKS.read_text(encoding="utf-8"))
    for name in shipped_presets():
        trees = [tomllib.loads(text) for text in preset_texts(name)]
        model, method, memory = ({k: v for tree in reversed(trees) for k, v in tree.get(section, {}).items()}
                                 for section in ("model", "method", "memory"))  # fmt: skip
        card = f"{memory['vram']:g} GB" if "vram" in memory else "any"
        peak = describe_size(peaks[name])
        base, about = model.get("base", "demo").rpartition("/")[2], trees[0].get("about", "")
        rows.append((name, base, card, peak, method.get("name", "spin"), about))
    Console().show_presets(rows)


@listing.command("show")
def show_preset(name: Preset) -> None:
    """Print a preset with its comments and every setting. What it leaves as it is stands in comments."""
    from spinlite.cli.preset_page import preset_page
    from spinlite.cli.terminal import visible

    typer.echo(visible(preset_page(name)))


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(plan)
    app.add_typer(listing, name="presets")
