"""Shows the findings in a terminal, or as JSON for programs."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace

from rich.console import Console as Screen
from rich.text import Text

from spinlite.check.findings import COMMON, Findings, format_size
from spinlite.data.records import Survey, list_names, printable
from spinlite.progress import describe_duration

BUCKETS = 10  # how many shapes get a line
BAR = 32  # characters of the longest bar


def as_json(findings: Findings) -> str:
    """Everything, for programs."""
    whole = asdict(replace(findings, survey=Survey()))
    del whole["survey"]
    return json.dumps(whole | {"trains": findings.problem is None}, indent=2)


def show(screen: Screen, findings: Findings) -> None:
    """Everything, for people, on one screen. What matters most comes last."""
    for name, fact in facts(findings).items():
        _say(screen, name, fact)
    _buckets(screen, findings)
    for name, reasons, empty in (("not used", findings.unused, "none"), ("remarks", findings.noted, "")):
        lines = [f"{len(names):,} {why}: {list_names(names)}" for why, names in reasons.items()] or [empty] * bool(empty)
        for i, line in enumerate(lines):
            _say(screen, "" if i else name, line)
    if findings.problem is None:
        _say(screen, "training", f"can start. The check took {describe_duration(findings.seconds)}", "bold green")
    else:
        _say(screen, "training", f"would stop: {printable(findings.problem)}", "bold red")
        _say(screen, "fix", printable(findings.fix or ""))


def facts(findings: Findings) -> dict[str, str]:
    """The findings that take one line each: heading -> text."""
    headers = "headers only: add --full to decode every picture and find look-alikes"
    lines = {
        "data": f"{printable(findings.place)} ({'every picture decoded' if findings.full else headers})",
        "pictures": f"{findings.pictures:,} found; {findings.learned:,} to learn from, {findings.heldout:,} for validation",
        "captions": f"{findings.captions:,} different; " + _counts(findings.origins, "{1:,} from {0}"),
    }
    if findings.few:
        lines["held out"] = findings.few
    if findings.clips:
        name, about = next(iter(findings.clips.items()))
        lines["clips"] = f"{len(findings.clips):,} files, such as {printable(name)}: {about}"
    if findings.sizes:
        least, middle, most = map(format_size, findings.sizes)
        common = {size: count for size, count in findings.common.items() if count > 1}
        lines["sizes"] = f"{least} to {most}, median {middle}; most common: {_counts(common, '{0} ({1:,})')}"
        lines["enlarged"] = _worst(findings.enlarged, "{:.2f} times")
        cut = _worst(findings.cut, "{:.0%}", "lose more than a tenth")
        lines["cut away"] = f"median {findings.cut_middle:.0%}; {cut}"
    if findings.tokens:
        t = findings.tokens
        over = f" and ignores the rest; longer captions: {len(t.over):,}, {list_names(t.over, COMMON)}" if t.over else ""
        lines["tokens"] = f"{t.least} to {t.most} per caption, median {t.middle}; the model reads the first {t.limit}" + over
    lines["words"] = _counts(findings.words, "{0} {1:,}")
    return lines


def _worst(values: dict[str, float], how: str, what: str = "") -> str:
    if not values:
        return f"none {what}".strip()
    name, value = next(iter(values.items()))
    return f"{len(values):,} {what}".strip() + f", at most {how.format(value)} ({printable(name)})"


def _counts(counts: dict[str, int], how: str) -> str:
    return ", ".join(how.format(printable(name), count) for name, count in counts.items()) or "none"


def _buckets(screen: Screen, findings: Findings) -> None:
    _say(screen, "shapes", f"{len(findings.buckets)} for {findings.model}")
    for name, count, share in bars(findings, BUCKETS):
        screen.print(Text.assemble(" " * 12, f"{name:>11} ", ("█" * math.ceil(share * BAR), "cyan"), f" {count:,}"))


def bars(findings: Findings, most: int) -> Iterable[tuple[str, int, float]]:
    """(shape, pictures, length of its bar from 0 to 1) of the `most` common shapes; then all others together, without bar."""
    shapes = list(findings.buckets.items())
    highest = max(findings.buckets.values(), default=1)
    shown = [(name, count, count / highest) for name, count in shapes[:most]]
    rest = sum(count for _, count in shapes[most:])
    return [*shown, (f"{len(shapes) - most} others", rest, 0.0)] if rest else shown


def _say(screen: Screen, name: str, fact: str, style: str = "") -> None:
    screen.print(Text.assemble("  ", (f"{name:<9}", "dim"), " ", (fact, style)))
