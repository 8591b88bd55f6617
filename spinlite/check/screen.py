"""What was found, in a terminal and for programs."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace

from rich.console import Console as Screen
from rich.text import Text

from spinlite.check.findings import COMMON, Findings, format_size
from spinlite.data.records import Survey, list_names, printable

BUCKETS = 10  # shapes that get a line
BAR = 32  # characters of the longest


def as_json(found: Findings) -> str:
    """Everything, for programs."""
    whole = asdict(replace(found, survey=Survey()))
    del whole["survey"]
    return json.dumps(whole | {"trains": found.problem is None}, indent=2)


def show(screen: Screen, found: Findings) -> None:
    """Everything, for people: on one screen, what matters most at its end."""
    for name, fact in facts(found).items():
        _say(screen, name, fact)
    _buckets(screen, found)
    for name, every, what in (("not used", found.unused, "none"), ("noted", found.noted, "")):
        lines = [f"{len(names):,} {why}: {list_names(names)}" for why, names in every.items()] or [what] * bool(what)
        for i, line in enumerate(lines):
            _say(screen, "" if i else name, line)
    if found.problem is None:
        _say(screen, "training", f"can start. Looked at in {found.seconds:.1f} s", "bold green")
    else:
        _say(screen, "training", f"would stop: {printable(found.problem)}", "bold red")
        _say(screen, "fix", printable(found.fix or ""))


def facts(found: Findings) -> dict[str, str]:
    """What there is to say in a line each, by what it is about."""
    looked = "every picture decoded" if found.full else "headers only: --full decodes every picture, and finds look-alikes"
    lines = {
        "data": f"{printable(found.place)} ({looked})",
        "pictures": f"{found.pictures:,} found; {found.learned:,} to learn from, {found.heldout:,} held out",
        "captions": f"{found.captions:,} different; " + _counts(found.origins, "{1:,} from {0}"),
    }
    if found.sizes:
        least, middle, most = map(format_size, found.sizes)
        common = {size: count for size, count in found.common.items() if count > 1}
        lines["sizes"] = f"{least} to {most}, the middle one {middle}; most common: {_counts(common, '{0} ({1:,})')}"
        lines["enlarged"] = _worst(found.enlarged, "{:.2f} times")
        cut = _worst(found.cut, "{:.0%}", "lose more than a tenth")
        lines["cut away"] = f"{found.cut_middle:.0%} of the middle picture; {cut}"
    if found.tokens:
        t = found.tokens
        over = f"; longer ones are cut there: {len(t.over):,}, {list_names(t.over, COMMON)}" if t.over else ""
        lines["tokens"] = (
            f"{t.least} to {t.most} a caption, the middle one {t.middle}; the model reads the first {t.limit}" + over
        )
    lines["words"] = _counts(found.words, "{0} {1:,}")
    return lines


def _worst(found: dict[str, float], how: str, what: str = "") -> str:
    if not found:
        return f"none {what}".strip()
    name, value = next(iter(found.items()))
    return f"{len(found):,} {what}".strip() + f", at most {how.format(value)} ({printable(name)})"


def _counts(found: dict[str, int], how: str) -> str:
    return ", ".join(how.format(printable(name), count) for name, count in found.items()) or "none"


def _buckets(screen: Screen, found: Findings) -> None:
    _say(screen, "shapes", f"{len(found.buckets)} for {found.model}")
    for name, count, share in bars(found, BUCKETS):
        screen.print(Text.assemble(" " * 12, f"{name:>11} ", ("█" * math.ceil(share * BAR), "cyan"), f" {count:,}"))


def bars(found: Findings, most: int) -> Iterable[tuple[str, int, float]]:
    """(shape, pictures, share of the most common one's) of the most common shapes; then all others, without share."""
    every = list(found.buckets.items())
    highest = max(found.buckets.values(), default=1)
    shown_ = [(name, count, count / highest) for name, count in every[:most]]
    rest = sum(count for _, count in every[most:])
    return [*shown_, (f"{len(every) - most} others", rest, 0.0)] if rest else shown_


def _say(screen: Screen, name: str, fact: str, style: str = "") -> None:
    screen.print(Text.assemble("  ", (f"{name:<9}", "dim"), " ", (fact, style)))
