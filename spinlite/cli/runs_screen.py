"""The table of runs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite.progress import describe_size
from spinlite.runs.listing import Listed


def show(screen: Screen, folder: Path, runs: Sequence[Listed]) -> None:
    """A row for each run, and how to free what can be made again."""
    if not runs:
        screen.print(Text(f"there are no runs in {folder}"))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    for heading in ("round", "error", "against\nbase", "on disk", "can be\nfreed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for run in runs:
        table.add_row(Text(printable(run.name)), f"{run.round} of {run.rounds}", *_figures(run), describe_size(run.size),
                      describe_size(run.cache), Text(printable(run.state)))  # fmt: skip
    screen.print(table)
    screen.print(Text("free what can be made again: spinlite runs clean NAME", style="dim"))


def _figures(run: Listed) -> tuple[str, str]:
    """The last round's error on unseen pictures, and what it is against the base's."""
    if not run.judged:
        return "", ""
    error = run.judged["policy_real"]
    return f"{error:.4f}", f"{100 * (error / run.base - 1):+.1f} %" if run.base else ""


def printable(text: str) -> str:
    """A text that is safe to print: escape codes are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
