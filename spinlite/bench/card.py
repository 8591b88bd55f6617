"""One page about this card, to paste into docs/bench.md: `python -m spinlite.bench.card`, ten minutes at most, no download.

Every preset for a card runs within the memory of the card that it names: its plan against measured peaks, the ratios between
ways to learn, where the time of an update goes, and what torch.compile gains. Without a card it does the same with the demo.
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence

import torch

from spinlite.bench.profile import as_markdown
from spinlite.bench.run import Figures, bench
from spinlite.bench.screen import paste, verdicts
from spinlite.bench.turns import ratio
from spinlite.bench.ways import DPO_WAY, FAST, ONE_GRAPH, SFT_WAY
from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.errors import SpinliteError
from spinlite.memory.oom import out_of_memory

MINUTES = 10.0
HEADINGS = (
    "preset", "planned MiB", "measured MiB", "most off", "saves memory: time", "peak", "fast: time", "peak", "DPO: time", "peak"
)  # fmt: skip
COMPILED = "memory.compile=true"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the page. Returns 0 if every preset was measured, else 1."""
    parser = argparse.ArgumentParser(prog="python -m spinlite.bench.card", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", help="presets to measure; none: all that name a card, or the demo without one")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no preset is begun after nine tenths of them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every preset")
    given = parser.parse_args(arguments)
    first, others = _presets(given.presets)
    begun, rows, further, failed = time.monotonic(), [], [], []

    def late(share: float) -> bool:
        return time.monotonic() - begun > 60 * given.minutes * share

    for name in [*first, *others]:
        if late(0.9):
            failed.append(f"- {name}: not measured, the time was over")
            continue
        found = _try(lambda name=name: _measure(name, given.set, name in first), failed, name)
        if found:
            rows.append(_row(name, found))
            further += _further(name, found)
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    if rows and not late(0.6) and COMPILED not in given.set:
        further += _compiled(first[0], given.set, failed)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    print("\n".join(["", f"## Measured on {device}", "", *_table(rows), *further, *([""] * bool(failed)), *failed]))
    return 1 if failed else 0


def _presets(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those that are measured first and profiled: one for each base model, or all that were named; the others)."""
    if given:
        return [*given], []
    if not torch.cuda.is_available():
        return ["demo"], []
    named = [name for name in shipped_presets() if name.endswith("gb")]
    first = list({load_settings(name).model.base: name for name in reversed(named)}.values())
    return first, [name for name in named if name not in first]


def _measure(name: str, changes: Sequence[str], profiled: bool) -> Figures:
    """Measure a preset, on a card that holds nothing of the one before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return bench(load_settings(name, changes), 2, 30.0, lambda done, of: None, profiled)


def _try(measure: Callable[[], Figures], failed: list[str], name: str) -> Figures | None:
    """What was measured; or None, and why not is in `failed`: one preset that fails must not cost the others."""
    try:
        return measure()
    except SpinliteError as error:
        failed.append(f"- {name}: {error}")
    except RuntimeError as error:
        reason = "out of memory" if out_of_memory(error) else type(error).__name__
        failed.append(f"- {name}: {reason}: {str(error).splitlines()[0]}")
    return None


def _row(name: str, found: Figures) -> list[str]:
    ways = {row.name: row for row in found.ways}
    phases = [row for row in found.phases if row.peak and row.planned]
    off = max((row.planned / row.peak - 1 for row in phases if row.planned and row.peak), key=abs, default=0.0)
    highest = [
        max((peak or 0 for peak in peaks), default=0) for peaks in zip(*((r.planned, r.peak) for r in phases), strict=True)
    ]
    cells = [name, *(f"{size / 2**20:.0f}" for size in highest), f"{off:+.1%}"]
    for way in (ONE_GRAPH, FAST, DPO_WAY):
        against = ratio(ways[way], ways[SFT_WAY])
        cells += [f"{against[0]:.2f}", f"{against[1]:.3f}"] if against else ["does not fit", ""]
    return cells


def _further(name: str, found: Figures) -> list[str]:
    lines = ["", f"**{name}**: {paste(name, found)}", ""]
    lines += [f"- {line}" for line in [*found.left_out, *verdicts(found, promises=True)]]
    return [*lines, "", *as_markdown(found.profiles)] if found.profiles.updates else lines


def _compiled(name: str, changes: Sequence[str], failed: list[str]) -> list[str]:
    """How much faster an SFT image and a pair are with torch.compile, in a measurement of its own."""
    with_it = _try(lambda: _measure(name, [*changes, COMPILED], False), failed, f"{name}, compiled")
    without = _try(lambda: _measure(name, changes, False), failed, name) if with_it else None
    if not (with_it and without):
        return []
    seconds = [{row.name: row.seconds for row in found.ways} for found in (with_it, without)]
    parts = [f"{way} {a:.2f}x" for way in (SFT_WAY, FAST) if (a := _share(*(s[way] for s in seconds)))]
    return ["", f"With memory.compile, {name}: {', '.join(parts)} of the time without it."]


def _share(some: float | None, whole: float | None) -> float | None:
    return some / whole if some and whole else None


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else []


if __name__ == "__main__":
    raise SystemExit(main())
