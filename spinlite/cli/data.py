"""The command that looks at data. Nothing here imports torch before a command needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spinlite.config.presets import shipped_presets
from spinlite.errors import SpinliteError

PLAIN = "sd15-12gb"  # a preset without rules for data, where none is named
NATIVE, STEP = (1024, 1024), 64  # px, where no preset says which model it is for: today's usual size


def check(
    data: Annotated[list[str], typer.Argument(help="folders of pictures, files of data sets (.parquet, .tar), or a preset")],
    preset: Annotated[str | None, typer.Option(help="the preset to train with: its rules, its model's shapes")] = None,
    full: Annotated[bool, typer.Option("--full", help="decode every picture, and find look-alikes")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page with thumbnails, problems first")] = None,
    json: Annotated[bool, typer.Option("--json", help="everything for programs")] = False,
    runs: Annotated[Path, typer.Option(help="where runs are kept, with what is known of pictures")] = Path("runs"),
    set_: Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="any setting; repeatable")] = [],  # noqa: B006
) -> None:
    """Show what is made of pictures and captions. Also what will not be used, and why; exit code 1 if training would stop."""
    from spinlite.cli.console import Console

    console = Console()
    if (
        preset is None
        and len(data) == 1
        and not Path(data[0]).is_dir()
        and (data[0] in shipped_presets() or data[0].endswith(".toml"))
    ):
        preset, data = data[0], []
    settings, pairs = _settings(data, preset, set_)
    from spinlite.check import screen
    from spinlite.check.findings import examine_sources

    model = _model(settings, preset)

    def look(progress: Any) -> Any:
        return examine_sources(settings.data, pairs, runs / "cache", progress, full, *model)

    if json:
        found = look(lambda done, of: None)
        typer.echo(screen.as_json(found))
    else:
        with console.phase("look at pictures", 1) as progress:
            found = look(progress)
        screen.show(console.screen, found)
    if html:
        from spinlite.check.page import write_page

        write_page(found, html)
        if not json:
            console.say(f"  page      {html}")
    if found.problem:
        raise typer.Exit(1)


def _settings(data: Sequence[str], preset: str | None, set_: Sequence[str]) -> tuple[Any, bool]:
    """(settings, whether the sources are of pairs): a preset's, with the sources that are named instead of its own."""
    from spinlite.config.load import load_settings
    from spinlite.config.settings import Source

    settings = load_settings(preset or PLAIN, set_)
    if data:
        rules = settings.data.model_dump(include=set(Source.model_fields)) | {"folder": None, "dataset": None}
        sources = [Source.model_validate(rules | _source(text)) for text in data]
        nowhere = {"folder": None, "dataset": None, "sources": sources}
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=nowhere)})
    if preset is None:
        return settings, all((Path(text) / side).is_dir() for text in data for side in ("win", "lose"))
    return settings, settings.build_method().fakes == "given"


def _source(text: str) -> dict[str, str]:
    if Path(text).is_dir() or text == "demo":
        return {"folder": text}
    if Path(text).is_file():
        return {"dataset": text}
    fix = "check the path; a data set of the hub: spinlite check PRESET --set data.dataset=ID"
    raise SpinliteError(f"there is no folder, file or preset {text}", fix=fix)


def _model(settings: Any, preset: str | None) -> tuple[Any, str, Any]:
    """(the shapes that pictures are learned in, for which model, its tokenizer)."""
    from spinlite.data.buckets import Grid

    if preset is None:
        from spinlite.families.clip import build_tokenizer

        size, step, whose, reader = NATIVE, STEP, "the size of SDXL (--preset NAME: another)", build_tokenizer()
    else:
        from spinlite.families.load import load_tokenizer, size_and_step

        (size, step), whose, reader = size_and_step(settings.model), preset, load_tokenizer(settings.model)
    return Grid(size, step, settings.data.upscale, settings.data.buckets), f"{size[0]} x {size[1]} px, {whose}", reader


def register(app: typer.Typer) -> None:
    """Put the command into the program's."""
    app.command()(check)
