"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[str, typer.Argument(help="a shipped preset (see `spinlite presets`) or a TOML file")]
DataFolder = Annotated[str | None, typer.Option(help="folder of pictures with captions (name.png + name.txt)")]
Runs = Annotated[Path, typer.Option(help="folder for your runs")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change a setting, e.g. learn.lr=1e-4; repeatable")
]
