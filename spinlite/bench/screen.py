"""How a measurement is shown: a table of phases, a table of ways, what was left out, and a line to paste into a report."""

import dataclasses
import importlib.metadata
import json
import platform
from typing import Any

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite import __version__
from spinlite.bench.run import Figures
from spinlite.bench.turns import Row, ratio, together
from spinlite.bench.ways import AHEAD, AT_ONCE, ONE_GRAPH, PLAIN, SFT_WAY, WORDS

PACKAGES = ("torch", "diffusers", "peft", "bitsandbytes")
NUMBERS = ("time", "peak", "work")  # of a ratio
APART = 0.08  # of a measured peak, that the plan may be off
TARGETS = ((ONE_GRAPH, 2.6, 1.05), (AT_ONCE, 2.1, None))  # a pair in terms of an SFT image: time, peak


def show(screen: Screen, preset: str, found: Figures) -> None:
    """Everything, for people."""
    levers = ", ".join(f"{name} {value}" for name, value in found.levers.items() if value not in (None, False, "none"))
    for name, fact in {
        "model": f"{found.title}, random pictures of {_px(found.size)}, {found.samples} at once",
        "device": found.device + (f", held to {found.limit:g} GB" if found.limit else ""),
        "levers": levers,
    }.items():
        screen.print(Text.assemble("  ", (f"{name:<8}", "dim"), " ", fact))
    screen.print()
    screen.print(_phases(found))
    screen.print()
    screen.print(_ways(found))
    screen.print()
    for name, words in WORDS.items():
        screen.print(Text(f"  {name:<20} {words}", style="dim"))
    screen.print()
    for line in verdicts(found):
        screen.print(Text(f"  {line}"))
    for line in found.left_out:
        screen.print(Text.assemble("  ", ("left out", "yellow"), f" {line}"))
    screen.print(Text.assemble("  ", ("paste   ", "dim"), " ", paste(preset, found)))


def as_json(preset: str, found: Figures) -> str:
    """Everything, for programs."""
    tree: dict[str, Any] = dataclasses.asdict(found)
    tree["preset"], tree["versions"] = preset, {"spinlite": __version__} | _versions()
    sft = _row(found, SFT_WAY)
    for way in tree["ways"]:
        against = ratio(_row(found, way["name"]), sft)
        way["to_sft"] = dict(zip(NUMBERS, against, strict=True)) if against else None
    for name in (ONE_GRAPH, AT_ONCE):
        against = _against_plain(found, name)
        tree.setdefault("to_plain", {})[name] = dict(zip(NUMBERS, against, strict=True)) if against else None
    tree["paste"] = paste(preset, found)
    return json.dumps(tree, ensure_ascii=False, indent=2)


def verdicts(found: Figures) -> list[str]:
    """The ratios against what spinlite promises, in words."""
    lines = []
    for name, most_time, most_peak in TARGETS:
        if against := ratio(_row(found, name), _row(found, SFT_WAY)):
            time, peak, work = against
            held = time <= most_time and (most_peak is None or peak <= most_peak)
            most = f"{most_time:g}x the time" + (f", {most_peak:g}x the memory" if most_peak else "")
            lines.append(
                f"{name}: {time:.2f}x the time of an SFT image (work {work:.2f}x), {peak:.3f}x its memory; "
                f"promised at most {most}: {'held' if held else 'not held'}"
            )
    if off := [(row.planned / row.peak - 1, row.name) for row in [*found.phases, *found.ways] if row.peak and row.planned]:
        most, name = max(off, key=lambda each: abs(each[0]))
        held = "held" if abs(most) <= APART else "not held"
        lines.append(f"planned peaks: {most:+.1%} of the measured at the most ({name}); promised within {APART:.0%}: {held}")
    for name in (ONE_GRAPH, AT_ONCE):
        if against := _against_plain(found, name):
            lines.append(f"{name} with {AHEAD}, against {PLAIN}: {against[0]:.2f}x the time, {against[1]:.2f}x the memory")
    return lines


def paste(preset: str, found: Figures) -> str:
    """One line with everything that a report needs."""
    parts = [f"spinlite {__version__} bench {preset}", found.device, platform.platform(terse=True)]
    parts += [f"{name} {version}" for name, version in _versions().items()]
    parts.append(f"{_px(found.size)} x{found.samples}")
    parts += [
        f"{row.name} {row.seconds:.3g} s/{row.unit} {_mib(row.peak)} MiB (planned {_mib(row.planned)})"
        for row in found.phases if row.seconds
    ]  # fmt: skip
    for name in (ONE_GRAPH, AT_ONCE, PLAIN):
        rows = [row for row in found.ways if row.name == name]
        if rows and (against := ratio(rows[0], _row(found, SFT_WAY))):
            parts.append(f"{name} {against[0]:.2f}x time {against[1]:.3f}x memory of SFT")
    return " | ".join(parts)


def _phases(found: Figures) -> Table:
    table = _table("phase", "sample", "at once", "s/sample", "samples/s", "peak MiB", "planned")
    for row in found.phases:
        speed = (f"{row.seconds:.3g}", f"{1 / row.seconds:.3g}") if row.seconds else ("does not fit", "")
        table.add_row(f"  {row.name}", row.unit, str(row.samples), *speed, _mib(row.peak), _mib(row.planned))
    return table


def _ways(found: Figures) -> Table:
    table = _table("a step; SFT = 1", "s/sample", "peak MiB", "planned", "time", "peak", "work")
    for row in found.ways:
        against = ratio(row, _row(found, SFT_WAY))
        speed = f"{row.seconds:.3g}" if row.seconds else "does not fit"
        table.add_row(f"  {row.name}", speed, _mib(row.peak), _mib(row.planned), *(f"{value:.2f}x" for value in against or ()))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(f"  {first}", no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _row(found: Figures, name: str) -> Row:
    return next(row for row in found.ways if row.name == name)


def _against_plain(found: Figures, name: str) -> tuple[float, float, float] | None:
    """A way with known errors, and the making of them, in terms of the plain way, which does both in its step."""
    plain = [row for row in found.ways if row.name == PLAIN]
    return ratio(together(name, _row(found, name), _row(found, AHEAD)), plain[0]) if plain else None


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def _mib(size: int | None) -> str:
    return f"{size / 2**20:.0f}" if size else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
