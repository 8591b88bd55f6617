"""The command that writes a page about runs. Nothing here imports torch before the command needs it."""

from pathlib import Path
from typing import Annotated

import typer

from spinlite.cli.paths import page_file
from spinlite.errors import SpinliteError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of runs, e.g. runs/demo; several are compared")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="file to write; default: RUN/report.html")
    ] = None,
) -> None:
    """Write a page about runs: samples of every round, charts, settings. Needs no network to be read."""
    from spinlite.cli.console import Console
    from spinlite.report.page import write_report

    if output is None and len(runs) > 1:
        raise SpinliteError("several runs are compared on one page, which needs a name", fix="add: -o compared.html")
    path = page_file(output, "-o") if output else runs[0] / "report.html"
    write_report(runs, path)
    Console().show_facts({"page": str(path)})


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(report)
