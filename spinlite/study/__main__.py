"""The study's command.

python -m spinlite.study                     # go on with all of it
python -m spinlite.study --only headline     # some of it: groups or arms
python -m spinlite.study --report            # tables and figures from the results that are there
python -m spinlite.study --small             # two cells, a minute: that it works
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from spinlite.cli.console import Console
from spinlite.config.presets import PACKAGE
from spinlite.errors import SpinliteError
from spinlite.evaluate.prompts import read_pictures
from spinlite.evaluate.towers import KEPT, Towers
from spinlite.study.arms import ARMS, FULL, GROUPS, SMALL, Cell, cells
from spinlite.study.measures import Yardstick
from spinlite.study.page import write_page
from spinlite.study.results import Results, Table
from spinlite.study.run import run_base, run_cell, show
from spinlite.study.towers import train


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    torch.set_num_threads(1)  # so small a network gains nothing from a second, and the same bits come out everywhere
    try:
        _study(options, console)
    except SpinliteError as error:
        console.error(error.problem, error.fix)
        return 1
    except KeyboardInterrupt:
        console.say("stopped: the same command goes on from here")
        return 130
    return 0


def _study(options: argparse.Namespace, console: Console) -> None:
    scale = SMALL if options.small else FULL
    only, seeds = (["sft", "spin"], [0]) if options.small else (options.only, options.seeds)
    wanted = list(cells(scale, only, seeds))
    judged = read_pictures(PACKAGE / "demo" / "judge")
    if options.materials:
        train(options.materials, [r.caption for r in judged], console.say).save(KEPT)
    results = Results(options.out / "results.jsonl")
    if not options.report:
        _run(wanted, results, options.towers or KEPT, options.runs, options.out, console)
    every = [Cell(arm, seed, scale) for arm in ARMS for seed in range(arm.seeds)]
    write_page(options.out.with_suffix(".md"), options.out, Table(results.lines(every, scale)))
    console.say(f"{options.out.with_suffix('.md')} and its figures are written")


def _run(wanted: Sequence[Cell], results: Results, towers: Path, runs: Path, out: Path, console: Console) -> None:
    scale = wanted[0].scale
    yardstick = Yardstick(scale, Towers.load(towers), runs / "cache")
    run_base(wanted[0], runs, results, yardstick, console)
    for i, cell in enumerate(wanted):
        console.say(f"{i + 1}/{len(wanted)} {cell.arm.title}, seed {cell.seed}")
        run_cell(cell, runs, results, yardstick, console)
        if cell.arm.group == "headline" and cell.seed == 0:
            show(cell, runs, yardstick, out / "samples", console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m spinlite.study", description="The methods side by side on the demo model.")
    parser.add_argument("--small", action="store_true", help="two cells at a very small scale")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"arms, or groups: {', '.join(GROUPS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="these seeds alone")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page from the results that are there")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "study", help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("docs") / "study", help="results and figures; the page lies beside it")
    parser.add_argument("--towers", type=Path, help="the towers that judge alignment (default: the demo's)")
    parser.add_argument("--materials", type=Path, metavar="DIR", help="train the towers anew, from the archives in DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
