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
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write the journal of one run as a table instead")
    ] = None,
) -> None:
    """Write a page about runs: samples of every round, charts, settings. Needs no network to be read."""
    from spinlite.cli.console import Console
    from spinlite.report.page import write_report
    from spinlite.report.table import journal_table
    from spinlite.runs.disk import write_bytes

    if csv:
        if len(runs) > 1:
            raise SpinliteError("a table is of one run", fix=f"type: spinlite report {runs[0]} --csv {csv}")
        path = page_file(csv, "--csv")
        write_bytes(path, journal_table(runs[0]))
        return Console().show_facts({"table": str(path)})
    if output is None and len(runs) > 1:
        raise SpinliteError("several runs are compared on one page, which needs a name", fix="add: -o compared.html")
    path = page_file(output, "-o") if output else runs[0] / "report.html"
    write_report(runs, path)
    Console().show_facts({"page": str(path)})


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(report)
