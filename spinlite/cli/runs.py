"""The commands about runs: what there is, what can be freed, and how to go back to an earlier round."""

from pathlib import Path
from typing import Annotated

import typer

from spinlite.cli.options import Runs
from spinlite.errors import SpinliteError

runs_app = typer.Typer(add_completion=False, rich_markup_mode=None)
Yes = Annotated[bool, typer.Option("--yes", help="don't ask")]


@runs_app.callback(invoke_without_command=True)
def runs(context: typer.Context, runs: Runs = Path("runs")) -> None:
    """List your runs: how each stands, its last figure, and what it takes on disk."""
    if context.invoked_subcommand:
        return
    from spinlite.cli import runs_screen
    from spinlite.cli.console import Console
    from spinlite.runs.listing import list_runs

    runs_screen.show(Console().screen, runs, list_runs(runs))


@runs_app.command()
def clean(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the run's name or folder")],
    runs: Runs = Path("runs"),
    yes: Yes = False,
) -> None:
    """Free what a run can make again: encoded pictures and fakes. Shows it first. Snapshots and LoRAs are never touched."""
    from spinlite.cli.console import Console
    from spinlite.progress import describe_size
    from spinlite.runs.listing import clean, find_run, size_of, spare_files

    console, folder = Console(), find_run(name, runs)
    files = spare_files(folder)
    if not files:
        return console.say(f"{folder}: there is nothing to free. What it shares with other runs stays.")
    for path in files:
        console.say(f"  {describe_size(size_of(path)):>9}  {path}")
    total = describe_size(sum(map(size_of, files)))
    console.say(f"{total}: encoded pictures and captions, fakes, measured errors. A run that goes on makes them again.")
    _ask(f"delete these {total}?", yes)
    clean(folder, files)
    console.say(f"freed {total}.")


@runs_app.command()
def rewind(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the run's name or folder")],
    to: Annotated[int, typer.Option(min=0, help="the round at whose end the run goes on; 0 is the start")],
    runs: Runs = Path("runs"),
    yes: Yes = False,
) -> None:
    """Take a run back to the end of an earlier round, as before a damaged file. Later rounds are made again."""
    from spinlite.cli.console import Console
    from spinlite.runs.listing import find_run
    from spinlite.runs.lock import hold
    from spinlite.runs.rewind import files_after
    from spinlite.runs.rewind import rewind as go_back

    console, folder = Console(), find_run(name, runs)
    files = files_after(folder, to)
    for path in files:
        console.say(f"  {path}")
    _ask(f"delete these {len(files)} files and go back to the end of round {to}?", yes)
    with hold(folder):
        go_back(folder, to)
    console.say(f"{folder} stands at the end of round {to}. Type its `spinlite train` command to go on from there.")


def _ask(question: str, yes: bool) -> None:
    """Raises SpinliteError if the answer is no."""
    if not (yes or typer.confirm(question)):
        raise SpinliteError("nothing was changed", fix="answer y, or add --yes")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(runs_app, name="runs")
