"""A cell from end to end: its run, its snapshots measured, its lines."""

import contextlib
import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spinlite import __version__
from spinlite.config.presets import PACKAGE
from spinlite.data.pictures import open_picture
from spinlite.progress import Watch
from spinlite.selfplay import train
from spinlite.study.arms import Cell
from spinlite.study.measures import Yardstick
from spinlite.study.results import BASE, REALS, Results
from spinlite.study.samples import keep


class Meter:
    """A watch that says nothing and keeps what the phases of each round took, in seconds of this process on a core.

    The study runs on one thread, so that on an idle machine these are seconds of wall time, and on a busy one still nearly.
    """

    def __init__(self) -> None:
        self.spent: dict[tuple[int, str], float] = defaultdict(float)

    def say(self, text: str) -> None: ...
    def show_facts(self, facts: dict[str, str]) -> None: ...
    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None: ...

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        start = time.process_time()
        yield lambda done, of, **found: None
        where, _, what = title.partition(" · ")
        if what:
            self.spent[int(where.removeprefix("round ").partition("/")[0]), what] += time.process_time() - start


def run_cell(cell: Cell, runs: Path, results: Results, yardstick: Yardstick, watch: Watch) -> None:
    """Bring a cell's lines into the results: train where it has not been, measure what has not been measured."""
    missing = [k for k in cell.judged if (cell.name, k, cell.made_of) not in results]
    if not missing:
        return
    folder, seconds = trained(cell, runs, watch)
    settings = cell.settings(_pictures(cell, runs), _start(cell, runs, watch))
    for k in missing:
        with watch.phase(f"{cell.name} · measure {k}", len(yardstick.records)) as progress:
            measures = yardstick.measure(settings, folder / "snapshots" / f"{k}.safetensors", progress)
        results.add(_line(cell.arm.name, cell.seed, k, cell.name, cell.made_of) | {
            "updates": cell.updates * k, "seconds": seconds.get(k), "signals": signals(folder, k), "measures": measures,
        })  # fmt: skip


def signals(folder: Path, k: int) -> dict[str, float]:
    """What the run itself knew of round k: the figures of its journal's judge event."""
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    found = next(event for event in events if event["event"] == "judge" and event["round"] == k)
    return {name: round(value, 5) for name, value in found.items() if isinstance(value, float) and name != "time"}


def run_base(cell: Cell, runs: Path, results: Results, yardstick: Yardstick, watch: Watch) -> None:
    """The lines of the base and of the real pictures, which no method changes."""
    made_of = cell.scale.made_of
    if (REALS, 0, made_of) not in results:
        results.add(_line(REALS, 0, 0, REALS, made_of) | {"updates": 0, "seconds": None, "measures": yardstick.of_reals()})
    if (BASE, 0, made_of) not in results:
        with watch.phase("base · measure", len(yardstick.records)) as progress:
            measures = yardstick.measure(cell.settings(_pictures(cell, runs)), None, progress)
        results.add(_line(BASE, 0, 0, BASE, made_of) | {"updates": 0, "seconds": None, "measures": measures})


def show(cell: Cell, runs: Path, yardstick: Yardstick, folder: Path, watch: Watch) -> None:
    """Keep strips of the reals', the base's and the cell's samples, where they are not kept yet and the run is still there."""
    settings, captions = cell.settings(_pictures(cell, runs), _start(cell, runs, watch)), [r.caption for r in yardstick.shown]
    made = {
        REALS: lambda: [open_picture(r.path) for r in yardstick.shown],
        BASE: lambda: yardstick.pictures(settings, None),
        cell.arm.name: lambda: yardstick.pictures(settings, _folder(cell, runs) / "snapshots" / f"{cell.rounds}.safetensors"),
    }
    for name, pictures in made.items():
        if not (path := folder / f"{name}.png").exists() and _folder(cell, runs).exists():
            keep(path, captions, pictures())


def trained(cell: Cell, runs: Path, watch: Watch) -> tuple[Path, dict[int, dict[str, Any]]]:
    """A cell's finished run, and what it took up to each round; nothing of what was not run from its start here and now."""
    folder = _folder(cell, runs)
    whole, meter = not folder.exists(), Meter()
    settings = cell.settings(_pictures(cell, runs), _start(cell, runs, watch))
    with watch.phase(f"{cell.name} · train", 1):
        train(settings, folder, meter)
    return folder, _seconds(cell, meter, settings.play.model_dump()) if whole else {}


def _seconds(cell: Cell, meter: Meter, play: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By round, all of it up to there. Fakes that lay in the cache are counted, and charged when results are read."""
    method = cell.settings(".").build_method()
    figures: dict[int, dict[str, Any]] = {}
    sums = {"learn": 0.0, "play": 0.0, "played": 0, "fakes": 0}
    for k in range(1, cell.rounds + 1):
        learned = meter.spent.get((k, "learn"), 0.0) + meter.spent.get((k, "opponent"), 0.0)
        played = meter.spent.get((k, "play"), 0.0)
        sums = {
            "learn": sums["learn"] + learned, "play": sums["play"] + played,
            "played": sums["played"] + (played > 0), "fakes": sums["fakes"] + (method.fakes == "played"),
        }  # fmt: skip
        figures[k] = {name: round(value, 2) for name, value in sums.items()} | {
            "play_settings": [cell.pictures, play["sampler"], play["steps"], play["guidance"] > 1, play["points"]]
        }
    return figures


def _start(cell: Cell, runs: Path, watch: Watch) -> str | None:
    """The LoRA of the last round of the cell that this one starts from."""
    if not cell.start:
        return None
    folder, _ = trained(cell.start, runs, watch)
    exported = sorted((folder / "export").glob("*.safetensors"))
    return str(next((path for path in exported if path.stem.endswith("-last")), exported[0]).resolve())


def _folder(cell: Cell, runs: Path) -> Path:
    return runs / f"{cell.name}-{cell.made_of[:6]}"


def _pictures(cell: Cell, runs: Path) -> str:
    """A folder with so many of the demo's pictures, spread over their names."""
    every = sorted((PACKAGE / "demo" / "fluent").glob("*.png"))
    if cell.pictures >= len(every):
        return "demo"
    folder = runs / f"pictures-{cell.pictures}"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(cell.pictures):
        path = every[i * len(every) // cell.pictures]
        for part in (path, path.with_suffix(".txt")):
            shutil.copyfile(part, folder / part.name)
    return str(folder.resolve())


def _line(arm: str, seed: int, round_: int, cell: str, made_of: str) -> dict[str, Any]:
    return {"cell": cell, "arm": arm, "seed": seed, "round": round_, "made_of": made_of, "code": _code()}


def _code() -> str:
    """The commit that this code is, or the version where it is no checkout."""
    try:
        command = ["git", "-C", str(PACKAGE), "rev-parse", "--short=10", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
