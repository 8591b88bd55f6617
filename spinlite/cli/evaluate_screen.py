"""The screen of `spinlite evaluate`: a table for each model, and what papers report beside them."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from spinlite.evaluate.evaluate import Evaluation
from spinlite.evaluate.tables import FOOT, Table, legend, published_tables, tables, title


def show(screen: Console, found: Evaluation, compare: bool) -> None:
    """Print all tables; with `compare` also the published ones."""
    screen.print(Text(title(found)))
    _print(screen, tables(found))
    screen.print()
    names = legend(found)
    for name, about in names:
        screen.print(Text(f"{name:<{max(len(n) for n, _ in names)}}  {about}"))
    screen.print(Text(FOOT))
    if compare and not _print(screen, published_tables(found)):
        screen.print(Text("no paper that is known here reports one of these columns"))


def _print(screen: Console, shown: Iterable[Table]) -> bool:
    """Whether there was anything to print."""
    printed = False
    for table in shown:
        screen.print(Text(f"\n{table.title}", style="bold"))
        for line in _aligned(table):
            screen.print(Text(line))
        if table.note:
            screen.print(Text(table.note, style="dim"))
        printed = True
    return printed


def _aligned(table: Table) -> Iterator[str]:
    widths = [max(len(line[i]) for line in table.lines if i < len(line)) for i in range(len(table.lines[0]))]
    for line in table.lines:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)).rstrip()
