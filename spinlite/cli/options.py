"""Arguments and options that several commands share."""

import functools
import inspect
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spinlite.config.spelling import SHORT
from spinlite.config.texts import setting_texts

Preset = Annotated[str, typer.Argument(help="a shipped preset (see `spinlite presets`) or a TOML file")]
DataFolder = Annotated[str | None, typer.Option(help="folder of pictures with captions (name.png + name.txt)")]
Runs = Annotated[Path, typer.Option(help="folder for your runs", callback=Path.expanduser)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change a setting (see `spinlite settings`); repeatable"),
]
OF_PRESETS = [name for name in SHORT if name != "data"]  # the short options of the commands that take a preset


def command_line(words: Sequence[str]) -> str:
    """Words as they are typed in this computer's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these short options of settings. It gets what was typed as overrides, at the end of `set_`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            short = {SHORT[name]: given.pop(name) for name in names}
            typed = [f"{place}={value}" for place, value in short.items() if value is not None]
            command(**given | {"set_": [*given["set_"], *typed]})

        signature = inspect.signature(command)
        parameters = [*signature.parameters.values(), *map(_parameter, names)]
        run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    option = typer.Option(help=setting_texts()[SHORT[name]], metavar=SHORT[name].rpartition(".")[2].upper())
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, option])
