"""What a person sees: one calm display in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as Screen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 15.0  # between two progress lines where the output is no terminal


class Console:
    """Tells a run to the user. Captions and names are shown as they are, never as markup."""

    def __init__(self, screen: Screen | None = None) -> None:
        self.screen = screen or Screen(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.screen.print(Text(text))

    def error(self, problem: str, fix: str) -> None:
        """An error and its remedy, on the error stream."""
        screen = Screen(stderr=True, highlight=False, soft_wrap=True)
        screen.print(Text.assemble(("error:", "bold red"), " ", problem))
        screen.print(Text.assemble(("fix:", "bold"), "   ", fix))

    def show_facts(self, facts: dict[str, str]) -> None:
        """What the run will do."""
        for name, fact in facts.items():
            self.screen.print(Text.assemble("  ", (f"{name:<9}", "dim"), " ", fact))

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar for the length of the block, then one line; yields progress(done, of, **figures)."""
        start = time.monotonic()
        last = ""
        with self._bar(title, total) if self.screen.is_terminal else self._lines(title) as advance:

            def progress(done: int, of: int, **found: float) -> None:
                nonlocal last
                last = _brief(found)
                advance(done, of, last)

            yield progress
        took = f"{time.monotonic() - start:6.1f} s  {last}".rstrip()
        self.screen.print(Text.assemble(f"  {title:<34} ", (took, "dim")))

    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
        self.screen.print(
            f"[bold]round {round_}/{rounds}[/]  held-out real error {found['policy_real']:.4f} (base {found['base_real']:.4f})"
            f"  ·  margin {found['margin']:+.1e}  ·  pairs won {found['accuracy']:.0%}"
        )

    def show_rounds(self, events: list[dict[str, Any]], best: int) -> None:
        """The rounds of a run, base first; nothing before there is one."""
        if not events:
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("", "held-out real error", "against base", "margin", "pairs won"):
            table.add_column(heading, justify="right")
        base = events[0]["base_real"]
        table.add_row("base", f"{base:.4f}", "", "", "")
        for event in events:
            mark = " (best)" if event["round"] == best else ""
            change = event["policy_real"] / base - 1
            table.add_row(
                f"round {event['round']}{mark}", f"{event['policy_real']:.4f}", f"{change:+.1%}",
                f"{event['margin']:+.1e}", f"{event['accuracy']:.0%}",
            )  # fmt: skip
        self.screen.print(table)

    def show_presets(self, rows: list[tuple[str, ...]]) -> None:
        """Shipped presets: name, model, card, planned peak, method, and below that what it is about."""
        headings = ("preset", "model", "card", "planned", "method")
        widths = [max(map(len, column)) for column in zip(headings, *(row[:-1] for row in rows), strict=True)]
        for *cells, about in [(*headings, ""), *rows]:
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            self.screen.print(Text(line, style="" if about else "dim"))
            if about:
                self.screen.print(Text(f"    {about}", style="dim"))

    @contextlib.contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int, int, str], None]]:
        columns = (
            TextColumn("  {task.description:<34}", markup=False), BarColumn(24), MofNCompleteColumn(),
            TimeRemainingColumn(compact=True), TextColumn("{task.fields[found]}", style="dim", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=self.screen, transient=True) as bar:
            task = bar.add_task(title, total=total, found="")
            yield lambda done, of, found: bar.update(task, completed=done, total=of, found=found)

    @contextlib.contextmanager
    def _lines(self, title: str) -> Iterator[Callable[[int, int, str], None]]:
        start = said = time.monotonic()

        def advance(done: int, of: int, found: str) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= PLAIN_SECONDS and done:
                said = now
                left = (now - start) / done * (of - done)
                self.screen.print(Text(f"  {title}: {done}/{of}, {left:.0f} s left  {found}".rstrip()))

        yield advance


def _brief(found: dict[str, float]) -> str:
    if "margin" in found:
        return f"margin {found['margin']:+.1e}  won {found['accuracy']:.0%}"
    return f"loss {found['loss']:.4f}" if "loss" in found else ""
