"""The outside judges of a run's snapshots.

    python -m spinlite.evaluate runs/demo

prints for every round, by the sampler of its fakes and by a good one that no run used: KID to real pictures that nothing
trained on, the share of samples that look like your pictures, and whether they show what their captions say. The last two
are known for the demo's pictures alone.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from spinlite.config.presets import PACKAGE
from spinlite.data.pictures import open_picture
from spinlite.errors import SpinliteError
from spinlite.evaluate import kid
from spinlite.evaluate.kid import Estimate, read_reals
from spinlite.evaluate.look import Look, styles
from spinlite.evaluate.outside import Judges, Row, Verdict, judge
from spinlite.evaluate.towers import Towers

OWN = PACKAGE / "demo" / "judge"
WORDS = {"kid": "KID x 1000", "look": "look, %", "alignment": "alignment"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Progress goes to the error stream."""
    options = _parser().parse_args(arguments)
    try:
        judges = judges_of(options.reals)
        found = {run: judge(run.resolve(), judges, options.draws, _phase_line, options.rounds) for run in options.runs}
    except SpinliteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    chance, spread = kid.halves(judges.reals[:, : kid.FEATURES]), kid.diversity(judges.reals[:, None, : kid.FEATURES])
    if options.json:
        about = {"captions": len(judges.records), "draws": options.draws, "halves": asdict(chance), "diversity": spread}
        rows = [asdict(row) for verdict in found.values() for row in verdict.rows]
        print(json.dumps({"rows": rows, "reals": about, "through": _dumped(found)}, indent=2))
    else:
        print("\n".join(line for verdict in found.values() for line in _table(verdict)))
        print(_foot(judges, options.draws, chance))
    return 0


def judges_of(folder: Path, most: int | None = None) -> Judges:
    """The pictures of a folder, or `most` of them spread over their names, with the classifiers that know them.

    Raises SpinliteError where there are fewer than 8.
    """
    every = read_reals(folder)
    records = every[:: len(every) // most][:most] if most else every
    own = folder.resolve() == OWN.resolve()
    reals = styles([open_picture(r.path) for r in records])
    return Judges(records, reals, Look.load() if own else None, Towers.load() if own else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m spinlite.evaluate", description="Outside judges of every snapshot of a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, such as runs/demo")
    parser.add_argument("--reals", type=Path, default=OWN, help="held-out pictures with captions")
    parser.add_argument("--rounds", type=int, nargs="+", default=[], metavar="K", help="these rounds alone, and the base")
    parser.add_argument("--draws", type=int, choices=range(1, 65), default=1, metavar="N", help="samples for each caption")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    return parser


def _dumped(found: dict[Path, Verdict]) -> dict[str, dict[str, dict[str, float]]]:
    return {run.name: {name: asdict(one) for name, one in verdict.through.items()} for run, verdict in found.items()}


@contextmanager
def _phase_line(title: str, total: int) -> Iterator[Callable[..., None]]:
    show = sys.stderr.isatty()
    yield lambda done, of: print(f"  {title} {done}/{of}", end="\r", file=sys.stderr, flush=True) if show else None
    print(f"  {title} {total}/{total}", file=sys.stderr)


def _table(verdict: Verdict) -> Iterator[str]:
    """A block for each sampler; a line for each round, and below it what has changed since the base."""
    measures = list(verdict.through)
    last = ""
    for row in verdict.rows:
        if row.sampler != last:
            last, whose = row.sampler, "the fakes' own" if row.own else "no fakes came from it"
            yield f"{row.run} · sampler: {last} ({whose})"
            yield f"{'round':<10}" + "".join(f"{WORDS[name] + ' [95 %]':<28}" for name in measures) + "diversity"
        yield _line(str(row.round), row.figures, measures) + f"{row.diversity:.2f}"
        if row.to_base:
            yield _line("  to base", row.to_base, measures, signed=True) + f"KID: {_share(row)} of the way to the line below"
    yield _line("reals, VAE", verdict.through, measures) + "what real pictures have after the VAE"


def _line(head: str, figures: dict[str, Estimate], measures: Sequence[str], signed: bool = False) -> str:
    sign = "+" if signed else ""
    cells = [f"{(x := figures[name]).value:{sign}.1f} [{x.low:{sign}.1f}, {x.high:{sign}.1f}]" for name in measures]
    return f"{head:<10} " + "".join(f"{cell:<28}" for cell in cells)


def _share(row: Row) -> str:
    return f"{row.way:.0%}" if row.way is not None else "-"


def _foot(judges: Judges, draws: int, chance: Estimate) -> str:
    count = len(judges.records)
    line = f"{count} captions, {draws} sample{'s' * (draws > 1)} each; KID: lower is better, halves of the reals {chance}"
    if judges.look:
        line += f"; look: a classifier that is right on {judges.look.accuracy:.1%} of pictures it never saw"
    return line + "; round 0 is the base"


if __name__ == "__main__":
    sys.exit(main())
