"""Commands around presets and plans. Nothing here imports torch before a command needs it."""

import os
from typing import Annotated, Any

import typer

from spinlite.config.presets import preset_texts, shipped_presets
from spinlite.plan.plan import HELDOUT, PEAKS, TRAIN, Plan, cache_folder, cache_name, load_plan, save_plan

Preset = Annotated[str, typer.Argument(help="a shipped preset (see `spinlite presets`) or a TOML file")]
Set = Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="any setting; repeatable")]
listing = typer.Typer(invoke_without_command=True, help="List the shipped presets.", rich_markup_mode=None)


def plan(
    preset: Preset,
    vram: Annotated[float | None, typer.Option(metavar="GB", min=1, help="plan for a card of this size")] = None,
    data: Annotated[str | None, typer.Option(help="folder of pictures with .txt captions")] = None,
    set_: Set = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="the plan for programs")] = False,
) -> None:
    """Say what a run will need, before any download. Memory, time, disk, and how it is fitted in; no GPU is needed."""
    from spinlite.cli import plan_screen
    from spinlite.cli.console import Console

    console = Console()
    train, heldout, pictures = _pictures(preset, data, set_)
    found = find_plan(preset, vram, data, set_, train, heldout, console if not json else None)
    if json:
        typer.echo(plan_screen.as_json(found))
    else:
        plan_screen.show(console.screen, found, pictures)


def find_plan(
    preset: str, vram: float | None, data: str | None, set_: list[str], train: int, heldout: int, console: Any
) -> Plan:
    """The plan, from the cache where it was made before: for the card named, or with as much free on those at hand."""
    shelf = cache_folder()
    told = preset_texts(preset)
    named = vram or any("vram" in text for text in [*told, *set_])
    name = cache_name("plan", preset, told, set_, vram, train, heldout, [] if named else _free_memory())
    if known := load_plan(shelf, name):
        return known
    from spinlite.config.load import load_settings

    settings = load_settings(preset, set_, data__folder=data)
    from spinlite.plan.make import card_for, make_plan

    if console:
        with console.screen.status("the networks are rehearsed without data: up to a minute, then known"):
            found = make_plan(preset, settings, card_for(settings, vram), train, heldout, shelf)
    else:
        found = make_plan(preset, settings, card_for(settings, vram), train, heldout, shelf)
    save_plan(shelf, name, found)
    return found


def _free_memory() -> list[Any]:
    """What is free on this computer, in steps that hardly change a plan. Found without torch, which takes seconds to import."""
    import psutil

    from spinlite.doctor.cards import nvidia_smi

    cards = [(card.name, (card.free or 0) // 256) for card in nvidia_smi()[0]]  # MiB
    return [cards, os.environ.get("CUDA_VISIBLE_DEVICES"), psutil.virtual_memory().available // 2**31]


def _pictures(preset: str, data: str | None, set_: list[str]) -> tuple[int, int, str]:
    """(to learn from, held out, in words), by what a run would find in the folder; 100 where none is named."""
    if data is None:
        return TRAIN, HELDOUT, "100 pictures (--data FOLDER counts yours)"
    from spinlite.config.load import load_settings
    from spinlite.data.survey import examine

    settings = load_settings(preset, set_, data__folder=data)
    found = examine(settings.data, settings.build_method().fakes == "given", headers=True)
    if found.stop:
        raise found.stop
    train, heldout = len(found.train), len(found.heldout)
    return train, heldout, f"{train} captioned pictures to learn from, and {heldout} held out"


@listing.callback()
def list_presets(context: typer.Context) -> None:
    """List the shipped presets: model, card, planned peak, method."""
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
        peak = f"{peaks[name] / 2**30:.1f} GB"
        base, about = model.get("base", "demo").rpartition("/")[2], trees[0].get("about", "")
        rows.append((name, base, card, peak, method.get("name", "spin"), about))
    Console().show_presets(rows)


@listing.command()
def show_preset(name: Preset) -> None:
    """Print a preset with every default written out."""
    import tomli_w

    from spinlite.config.load import load_settings

    settings = load_settings(name)
    typer.echo(tomli_w.dumps(settings.model_dump(exclude_none=True)).rstrip())


def register(app: typer.Typer) -> None:
    """Put the commands into the program's."""
    app.command()(plan)
    app.add_typer(listing, name="presets")
