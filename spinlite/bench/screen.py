"""How a measurement is shown: a table of phases, a table of ways to learn, and a line to paste into a report."""

import dataclasses
import importlib.metadata
import json
import platform
from typing import Any

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite import __version__
from spinlite.bench.profile import as_markdown
from spinlite.bench.run import Figures
from spinlite.bench.turns import Row, ratio, together
from spinlite.bench.ways import DESCRIPTIONS, DIFFUSERS, DPO_WAY, FAST, ONE_GRAPH, OPPONENT_FIRST, SFT_WAY, TWO_NETWORKS

PACKAGES = ("torch", "diffusers", "peft", "bitsandbytes")
NUMBERS = ("time", "peak", "work")  # the parts of a ratio
APART = 0.08  # the plan may be off by this share of a measured peak
TARGETS = ((ONE_GRAPH, 2.6, 1.05), (FAST, 1.95, None))  # most time and peak of a pair, relative to an SFT image
SCRIPT = (0.8, 0.6)  # most time of DPO, relative to diffusers' script: without its encoding, and with it


def show(screen: Screen, preset: str, figures: Figures, promises: bool = False) -> None:
    """Everything, for people. `promises`: also what spinlite promises of the figures."""
    levers = ", ".join(f"{name} {value}" for name, value in figures.levers.items() if value not in (None, False, "none"))
    for name, fact in {
        "model": f"{figures.title}, random pictures of {_px(figures.size)}, {figures.samples} per step",
        "device": figures.device + (f", limited to {figures.limit:g} GB" if figures.limit else ""),
        "memory": levers,
    }.items():
        screen.print(Text.assemble("  ", (f"{name:<8}", "dim"), "  ", fact))
    screen.print()
    screen.print(_phases(figures))
    screen.print()
    screen.print(_ways(figures))
    screen.print()
    for name, text in DESCRIPTIONS.items():
        screen.print(Text(f"  {name:<24} {text}", style="dim"))
    screen.print()
    for line in figures.left_out:
        screen.print(Text.assemble("  ", ("differs ", "yellow"), f"  {line}"))
    screen.print(Text.assemble("  ", ("paste   ", "dim"), "  ", paste(preset, figures)))
    screen.print()
    for line in verdicts(figures, promises):
        screen.print(Text(f"  {line}"))
    if figures.profiles.updates:
        screen.print(Text("\n".join(["", *as_markdown(figures.profiles)])))


def as_json(preset: str, figures: Figures) -> str:
    """Everything, for programs."""
    tree: dict[str, Any] = dataclasses.asdict(figures)
    tree["preset"], tree["versions"] = preset, {"spinlite": __version__} | _versions()
    sft = _row(figures, SFT_WAY)
    for way in tree["ways"]:
        against = ratio(_row(figures, way["name"]), sft)
        way["to_sft"] = dict(zip(NUMBERS, against, strict=True)) if against else None
    for name in (ONE_GRAPH, FAST):
        against = _against_two_networks(figures, name)
        tree.setdefault("to_plain", {})[name] = dict(zip(NUMBERS, against, strict=True)) if against else None
    tree["paste"] = paste(preset, figures)
    return json.dumps(tree, ensure_ascii=False, indent=2)


def verdicts(figures: Figures, promises: bool = False) -> list[str]:
    """The measured ratios in words; with `promises`: also what spinlite promises of them, and whether that is kept."""
    lines = []
    for name, most_time, most_peak in TARGETS:
        if against := ratio(_row(figures, name), _row(figures, SFT_WAY)):
            time, peak, work = against
            kept = time <= most_time and (most_peak is None or peak <= most_peak)
            most = f"{most_time:g}x the time" + (f", {most_peak:g}x the memory" if most_peak else "")
            line = f"{name}: {time:.2f}x the time of an SFT image (work {work:.2f}x), {peak:.3f}x its memory"
            lines.append(line + _promise(f"at most {most}", kept) * promises)
    if off := [(row.planned / row.peak - 1, row.name) for row in [*figures.phases, *figures.ways] if row.peak and row.planned]:
        most, name = max(off, key=lambda each: abs(each[0]))
        line = f"planned peaks: off by {most:+.1%} at most ({name})"
        lines.append(line + _promise(f"within {APART:.0%}", abs(most) <= APART) * promises)
    for name in (ONE_GRAPH, FAST):
        if against := _against_two_networks(figures, name):
            time, peak, _ = against
            lines.append(f"{name} ({OPPONENT_FIRST}): {time:.2f}x the time and {peak:.2f}x the memory of {TWO_NETWORKS}")
    return lines + _against_script(figures, promises) + _round_in_all(figures)


def _against_script(figures: Figures, promises: bool) -> list[str]:
    """DPO's step against that of diffusers' script, which encodes two pictures and a caption for each pair."""
    rows = {row.name: row for row in [*figures.phases, *figures.ways]}
    script = rows.get(DIFFUSERS)
    against = ratio(rows[DPO_WAY], script) if script else None
    if not (against and script and script.seconds):
        return []
    encoding = (2 * (rows["encode"].seconds or 0) + (rows["captions"].seconds or 0)) / script.seconds
    ratios = {"": against[0], ", with its encoding": against[0] / (1 + encoding)}
    return [
        f"{DPO_WAY}: {time:.2f}x the time of {DIFFUSERS}{words}" + _promise(f"at most {most:g}x", time <= most) * promises
        for (words, time), most in zip(ratios.items(), SCRIPT, strict=True)
    ]


def _round_in_all(figures: Figures) -> list[str]:
    """A round of SPIN per picture that is seen: its share of a fake, the opponent's errors and the step."""
    rows = {row.name: row for row in [*figures.phases, *figures.ways]}
    parts = [rows[name].seconds for name in ("play", OPPONENT_FIRST, FAST, SFT_WAY)]
    if not all(parts):
        return []
    play, ahead, pair, sft = (part or 0.0 for part in parts)
    shares = {"play": play / figures.seen / sft, "opponent": ahead / sft, "learn": pair / sft}
    words = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    seen = f"per picture seen, each {figures.seen:.0f} times"
    return [f"a round in all: {sum(shares.values()):.2f}x the time of SFT {seen} ({words})"]


def _promise(most: str, kept: bool) -> str:
    return f"; promise: {most}: {'kept' if kept else 'not kept'}"


def paste(preset: str, figures: Figures) -> str:
    """One line with everything that a report needs."""
    parts = [f"spinlite {__version__} bench {preset}", figures.device, platform.platform(terse=True)]
    parts += [f"{name} {version}" for name, version in _versions().items()]
    parts.append(f"{_px(figures.size)} x{figures.samples}")
    parts += [
        f"{row.name} {row.seconds:.3g} s/{row.unit} {_mib(row.peak)} MiB (planned {_mib(row.planned)})"
        for row in figures.phases if row.seconds
    ]  # fmt: skip
    for name in (ONE_GRAPH, FAST, TWO_NETWORKS):
        rows = [row for row in figures.ways if row.name == name]
        if rows and (against := ratio(rows[0], _row(figures, SFT_WAY))):
            parts.append(f"{name} {against[0]:.2f}x time {against[1]:.3f}x memory of SFT")
    return " | ".join(parts)


def _phases(figures: Figures) -> Table:
    table = _table("phase", "sample", "batch", "s/sample", "samples/s", "peak MiB", "planned")
    for row in figures.phases:
        speed = (f"{row.seconds:.3g}", f"{1 / row.seconds:.3g}") if row.seconds else ("does not fit", "")
        table.add_row(f"  {row.name}", row.unit, str(row.samples), *speed, _mib(row.peak), _mib(row.planned))
    return table


def _ways(figures: Figures) -> Table:
    table = _table("step (SFT = 1)", "s/sample", "peak MiB", "planned", "time", "peak", "work")
    for row in figures.ways:
        against = ratio(row, _row(figures, SFT_WAY))
        speed = f"{row.seconds:.3g}" if row.seconds else "does not fit"
        table.add_row(f"  {row.name}", speed, _mib(row.peak), _mib(row.planned), *(f"{value:.2f}x" for value in against or ()))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(f"  {first}", no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _row(figures: Figures, name: str) -> Row:
    return next(row for row in figures.ways if row.name == name)


def _against_two_networks(figures: Figures, name: str) -> tuple[float, float, float] | None:
    """A way plus measuring the opponent first, relative to two networks, which do both in one step."""
    rows = [row for row in figures.ways if row.name == TWO_NETWORKS]
    return ratio(together(name, _row(figures, name), _row(figures, OPPONENT_FIRST)), rows[0]) if rows else None


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def _mib(size: int | None) -> str:
    return f"{size / 2**20:.0f}" if size else ""


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
