"""The console: one live display in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console as RichScreen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from spinlite.cli.terminal import Screen
from spinlite.progress import Pace, Stopped, describe_duration

PLAIN_SECONDS = 15.0  # between two progress lines where the output is not a terminal


class Console:
    """Shows a run to the user. Captions and names are shown as they are, never as markup."""

    def __init__(self, screen: RichScreen | None = None) -> None:
        self.screen = screen or Screen()
        self.stopping = False  # whether someone asked to stop after this step
        self._round_began: float | None = None

    def say(self, text: str) -> None:
        self.screen.print(Text(text))

    def error(self, problem: str, fix: str) -> None:
        """An error and its fix, on the error stream."""
        screen = Screen(stderr=True)
        screen.print(Text.assemble(("error:", "bold red"), " ", problem))
        screen.print(Text.assemble(("fix:", "bold"), "   ", fix))

    def show_facts(self, facts: dict[str, str]) -> None:
        """A line for each fact, after its heading."""
        for name, fact in facts.items():
            self.screen.print(Text.assemble("  ", (f"{name:<9}", "dim"), "  ", fact))

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a progress bar while the block runs, then one line. Yields progress(done, of, **figures)."""
        self._stop_if_asked()
        start, pace = time.monotonic(), Pace()
        if self._round_began is None and title.startswith("round "):  # not before: a run prepares itself only once
            self._round_began = start
        last = ""
        with self._bar(title, total, pace) if self.screen.is_terminal else self._lines(title, pace) as advance:

            def progress(done: int, of: int, **figures: float) -> None:
                nonlocal last
                last = _brief(figures)
                pace.report(done, of)
                advance(done, of, last)
                self._stop_if_asked()

            yield progress
        took = f"{_duration(time.monotonic() - start):>8}  {last}".rstrip()
        self.screen.print(Text.assemble(f"  {title:<30} ", (took, "dim")))

    def _stop_if_asked(self) -> None:
        if self.stopping:
            raise Stopped

    def show_round(self, round_: int, rounds: int, figures: dict[str, Any], /) -> None:
        """A line after a round, with what its judge measured and how long the run will still take."""
        left = (rounds - round_) * (time.monotonic() - self._round_began) if self._round_began else 0
        self._round_began = None
        self.screen.print(Text.assemble(
            (f"round {round_} of {rounds}", "bold"), ": "
            + (f"its samples are {figures['distance']:.3f} from your pictures, at the start "
               f"{figures['start_distance']:.3f} (0: alike); " if "distance" in figures else "")
            + f"error on unseen pictures {figures['policy_real']:.4f}, base {figures['base_real']:.4f} (lower is better); "
            f"prefers your picture to its own in {100 * figures['accuracy']:.0f} % of pairs"
            + (f"; moves {figures['motion']:.2g} times as much as your clips" if "motion" in figures else "")
            + (f"; about {describe_duration(left)} left for the run" if left else "")
        ))  # fmt: skip

    def show_rounds(self, events: list[dict[str, Any]], best: int) -> None:
        """A table of the run's rounds, the base first; nothing while there is no round."""
        if not events:
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        headings = (
            "",
            "samples from\nyour pictures",
            "error on\nunseen pictures",
            "against\nbase",
            "prefers your picture\nto its own",
        )
        for heading in headings:
            table.add_column(heading, justify="right")
        base = events[0]["base_real"]
        table.add_row("base", _distance(events[0], "start_distance"), f"{base:.4f}", "", "")
        for event in events:
            mark = " (best)" if event["round"] == best else ""
            change = event["policy_real"] / base - 1
            table.add_row(
                f"round {event['round']}{mark}", _distance(event, "distance"), f"{event['policy_real']:.4f}",
                f"{100 * change:+.1f} %",
                f"{100 * event['accuracy']:.0f} % of pairs",
            )  # fmt: skip
        self.screen.print(table)

    def show_presets(self, rows: list[tuple[str, ...]]) -> None:
        """Shipped presets: name, model, card, planned peak and method in one line; the description below."""
        headings = ("preset", "model", "card", "planned", "method")
        widths = [max(map(len, column)) for column in zip(headings, *(row[:-1] for row in rows), strict=True)]
        if self.screen.is_terminal:  # a long model's name is cut, so that a preset stays on its line
            widths[1] = max(8, min(widths[1], self.screen.width - sum(widths) + widths[1] - 2 * len(headings[1:])))
        for *cells, about in [(*headings, ""), *rows]:
            line = "  ".join(_fit(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            self.screen.print(Text(line, style="" if about else "dim"))
            if about:
                self.screen.print(Text(f"    {about}", style="dim"))

    @contextlib.contextmanager
    def _bar(self, title: str, total: int, pace: Pace) -> Iterator[Callable[[int, int, str], None]]:
        columns = (
            TextColumn("  {task.description:<20}", markup=False), BarColumn(10), MofNCompleteColumn(), _Left(pace),
            TextColumn("{task.fields[figures]}", style="dim", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=self.screen, transient=True) as bar:
            task = bar.add_task(title, total=total, figures="")
            yield lambda done, of, figures: bar.update(task, completed=done, total=of, figures=figures)

    @contextlib.contextmanager
    def _lines(self, title: str, pace: Pace) -> Iterator[Callable[[int, int, str], None]]:
        printed = time.monotonic()

        def advance(done: int, of: int, figures: str) -> None:
            nonlocal printed
            now = time.monotonic()
            if now - printed >= PLAIN_SECONDS and done:
                printed = now
                self.screen.print(Text(f"  {title}: {done} of {of}, {_left(pace)}  {figures}".rstrip()))

        yield advance


class _Left(ProgressColumn):
    """How long a phase will still take."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(_left(self._pace), style="cyan")


def _left(pace: Pace) -> str:
    left = pace.left()
    return "time unknown yet" if left is None else f"{describe_duration(left)} left"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else describe_duration(seconds)


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def _brief(figures: dict[str, float]) -> str:
    if "margin" in figures:
        return f"prefers yours {100 * figures['accuracy']:.0f} %"
    return f"loss {figures['loss']:.4f}" if "loss" in figures else ""


def _distance(figures: dict[str, Any], name: str) -> str:
    """A distance of samples from the pictures; pictures of shapes that hardly repeat have none."""
    return f"{figures[name]:.3f}" if name in figures else "–"
