"""The console: one live display in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as Screen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spinlite.progress import describe_duration

PLAIN_SECONDS = 15.0  # between two progress lines where the output is not a terminal


class Console:
    """Shows a run to the user. Captions and names are shown as they are, never as markup."""

    def __init__(self, screen: Screen | None = None) -> None:
        self.screen = screen or Screen(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.screen.print(Text(text))

    def error(self, problem: str, fix: str) -> None:
        """An error and its fix, on the error stream."""
        screen = Screen(stderr=True, highlight=False, soft_wrap=True)
        screen.print(Text.assemble(("error:", "bold red"), " ", problem))
        screen.print(Text.assemble(("fix:", "bold"), "   ", fix))

    def show_facts(self, facts: dict[str, str]) -> None:
        """A line for each fact, after its heading."""
        for name, fact in facts.items():
            self.screen.print(Text.assemble("  ", (f"{name:<9}", "dim"), " ", fact))

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a progress bar while the block runs, then one line. Yields progress(done, of, **figures)."""
        start = time.monotonic()
        last = ""
        with self._bar(title, total) if self.screen.is_terminal else self._lines(title) as advance:

            def progress(done: int, of: int, **figures: float) -> None:
                nonlocal last
                last = _brief(figures)
                advance(done, of, last)

            yield progress
        took = f"{time.monotonic() - start:6.1f} s  {last}".rstrip()
        self.screen.print(Text.assemble(f"  {title:<34} ", (took, "dim")))

    def show_round(self, round_: int, rounds: int, figures: dict[str, Any], /) -> None:
        """A line after a round, with what its judge measured."""
        self.screen.print(
            f"[bold]round {round_} of {rounds}[/]: error on unseen pictures {figures['policy_real']:.4f}, "
            f"base {figures['base_real']:.4f} (lower is better); "
            f"prefers your picture to its own in {100 * figures['accuracy']:.0f} %"
        )

    def show_rounds(self, events: list[dict[str, Any]], best: int) -> None:
        """A table of the run's rounds, the base first; nothing while there is no round."""
        if not events:
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("", "error on\nunseen pictures", "against\nbase", "margin", "prefers yours\nto its own"):
            table.add_column(heading, justify="right")
        base = events[0]["base_real"]
        table.add_row("base", f"{base:.4f}", "", "", "")
        for event in events:
            mark = " (best)" if event["round"] == best else ""
            change = event["policy_real"] / base - 1
            table.add_row(
                f"round {event['round']}{mark}", f"{event['policy_real']:.4f}", f"{100 * change:+.1f} %",
                f"{event['margin']:+.1e}", f"{100 * event['accuracy']:.0f} %",
            )  # fmt: skip
        self.screen.print(table)

    def show_presets(self, rows: list[tuple[str, ...]]) -> None:
        """Shipped presets: name, model, card, planned peak and method in one line; the description below."""
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
            TimeRemainingColumn(compact=True), TextColumn("{task.fields[figures]}", style="dim", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=self.screen, transient=True) as bar:
            task = bar.add_task(title, total=total, figures="")
            yield lambda done, of, figures: bar.update(task, completed=done, total=of, figures=figures)

    @contextlib.contextmanager
    def _lines(self, title: str) -> Iterator[Callable[[int, int, str], None]]:
        start = printed = time.monotonic()

        def advance(done: int, of: int, figures: str) -> None:
            nonlocal printed
            now = time.monotonic()
            if now - printed >= PLAIN_SECONDS and done:
                printed = now
                left = describe_duration((now - start) / done * (of - done))
                self.screen.print(Text(f"  {title}: {done} of {of}, {left} left  {figures}".rstrip()))

        yield advance


def _brief(figures: dict[str, float]) -> str:
    if "margin" in figures:
        return f"margin {figures['margin']:+.1e}  prefers yours {100 * figures['accuracy']:.0f} %"
    return f"loss {figures['loss']:.4f}" if "loss" in figures else ""
