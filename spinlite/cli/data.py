"""The command that checks data. Nothing here imports torch before a command needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spinlite.cli.options import Overrides, Runs, takes
from spinlite.cli.paths import page_file
from spinlite.config.presets import shipped_presets
from spinlite.errors import SpinliteError

PLAIN = "sd15-12gb"  # without --preset: a preset that has no rules for data of its own
NATIVE, STEP = (1024, 1024), 64  # px, without --preset: the size of SDXL


def check(
    data: Annotated[list[str], typer.Argument(help="folders of pictures, data set files (.parquet, .tar), or a preset")],
    preset: Annotated[str | None, typer.Option(help="the preset you will train with: its data rules and picture sizes")] = None,
    full: Annotated[bool, typer.Option("--full", help="decode every picture, and find look-alikes")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page with thumbnails, problems first")] = None,
    json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    runs: Runs = Path("runs"),
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Check a folder before training. Shows what will not be used, and why; exit code 1 if training would stop."""
    from spinlite.cli.console import Console

    console = Console()
    page = page_file(html, "--html") if html else None
    if preset is None and len(data) == 1 and _is_preset(data[0]):
        preset, data = data[0], []
    based = next((word.partition("=")[2] for word in set_ if word.startswith("model.base=")), None)
    settings, pairs = _settings(data, preset or (PLAIN if based else None), set_)
    findings = _examine(None if json else console, settings, based or preset, pairs, full, runs)
    if page:
        from spinlite.check.page import write_page

        write_page(findings, page)
        if not json:
            console.say(f"  page      {page}")
    if findings.problem:
        raise typer.Exit(1)


def _examine(console: Any, settings: Any, model: str | None, pairs: bool, full: bool, runs: Path) -> Any:
    """Look at the data and print the findings: on the console, or as JSON without one."""
    from spinlite.check import screen
    from spinlite.check.findings import examine_sources

    grid, words, counter = _model(settings, model)

    def examine(progress: Any) -> Any:
        return examine_sources(settings.data, pairs, runs / "cache", progress, full, grid, words, counter)

    if console is None:
        findings = examine(lambda done, of: None)
        typer.echo(screen.as_json(findings))
        return findings
    with console.phase("look at pictures", 1) as progress:
        findings = examine(progress)
    screen.show(console.screen, findings)
    return findings


def _is_preset(text: str) -> bool:
    """Whether the one argument names a preset instead of a folder."""
    return not Path(text).is_dir() and (text in shipped_presets() or text.endswith(".toml"))


def _settings(data: Sequence[str], preset: str | None, set_: Sequence[str]) -> tuple[Any, bool]:
    """(the preset's settings, whether the data are given pairs). Sources that are named replace those of the preset."""
    from spinlite.config.load import load_settings
    from spinlite.config.settings import Source

    if preset and len(data) == 1 and "folder" in (source := _source(data[0])):  # as `train` reads it
        settings = load_settings(preset, set_, data__folder=source["folder"])
        return settings, settings.build_method().fakes == "given"
    settings = load_settings(preset or PLAIN, set_)
    if data:
        rules = settings.data.model_dump(include=set(Source.model_fields)) | {"folder": None, "dataset": None}
        sources = [Source.model_validate(rules | _source(text)) for text in data]
        replaced = {"folder": None, "dataset": None, "sources": sources}
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=replaced)})
    if preset is None:
        return settings, all((Path(text) / side).is_dir() for text in data for side in ("win", "lose"))
    return settings, settings.build_method().fakes == "given"


def _source(text: str) -> dict[str, str]:
    if not text.strip():
        raise SpinliteError("the name of the data folder is empty", fix="type e.g. spinlite check my-pictures")
    if Path(text).is_dir() or text == "demo":
        return {"folder": text}
    if Path(text).is_file():
        return {"dataset": text}
    fix = "check the path; for a data set on the hub, type: spinlite check PRESET --set data.dataset=ID"
    raise SpinliteError(f"there is no folder, file or preset {text}", fix=fix)


def _model(settings: Any, name: str | None) -> tuple[Any, str, Any]:
    """(the grid of picture shapes, the model in words, what counts its tokens)."""
    from spinlite.data.buckets import Grid
    from spinlite.data.survey import grid_of
    from spinlite.families.load import token_counter

    counter = token_counter(settings.model)
    if name is None:
        side = settings.model.resolution
        grid = Grid((side, side) if side else NATIVE, STEP, settings.data.upscale, settings.data.buckets)
    else:
        grid = grid_of(settings)
    model = name or ("as asked" if settings.model.resolution else "the size of SDXL (add --preset NAME for another)")
    return grid, f"{grid.native[0]} x {grid.native[1]} px, {model}", counter


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(takes("base", "resolution")(check))
