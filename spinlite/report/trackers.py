"""The journal's figures and the sheets, also for experiment trackers such as TensorBoard, by way of accelerate.

A tracker that fails is left out from then on, and said once: it never ends a run.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spinlite.progress import Watch
from spinlite.report.story import PRIVATE
from spinlite.runs.run import Run
from spinlite.runs.trees import flatten

PROJECT = "spinlite"  # under which trackers list the runs
SIDE = 1600  # px, the longer side of a sheet
Event = dict[str, Any]


@contextlib.contextmanager
def tracked(run: Run, watch: Watch) -> Iterator[None]:
    """While the block runs, every event that is journalled goes to the trackers of [report] too."""
    if not run.settings.report.trackers:
        yield
        return
    following = Trackers(run, watch)
    run.journal.listeners.append(following.hear)
    try:
        yield
    finally:
        run.journal.listeners.remove(following.hear)
        following.close()


class Trackers:
    """The trackers of a run that have not failed yet."""

    def __init__(self, run: Run, watch: Watch) -> None:
        self._run, self._watch = run, watch
        self._open: dict[str, Any] = {}
        for name in run.settings.report.trackers:
            self._open[name] = None
            self._try(name, lambda name=name: self._start(name))

    def hear(self, event: Event) -> None:
        """Pass an event on: its numbers, and after a round the sheets."""
        values = numbers(event)
        step = self._step(event)
        for name in list(self._open):
            self._try(name, lambda name=name: self._open[name].log(values, step=step) if values else None)
            if event["event"] == "judge" and name in self._open:
                self._try(name, lambda name=name: self._log_sheets(name, event["round"], step))

    def close(self) -> None:
        for name in list(self._open):
            self._try(name, lambda name=name: self._open[name].finish())

    def _start(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker = LOGGER_TYPE_TO_CLASS[name](**_arguments(name, self._run))
        tracker.start()
        tree = self._run.settings.model_dump(exclude=PRIVATE)
        settings = {key.replace("/", "."): str(value) for key, value in flatten(tree)[1].items()}
        if name == "tensorboard":  # its table of settings is for many runs in one folder
            tracker.log({"settings": "\n".join(f"    {key} = {value}" for key, value in settings.items())}, step=0)
        else:
            tracker.store_init_configuration(settings)
        self._open[name] = tracker

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            del self._open[name]
            missing = isinstance(error, ImportError)
            why = f"it is not installed: pip install {name.replace('_', '-')}" if missing else " ".join(str(error).split())
            self._watch.say(f"the run goes on without {name}: {why or type(error).__name__}")

    def _step(self, event: Event) -> int:
        """The optimizer steps of the run so far."""
        began = self._run.events("begin")
        length = began[0]["settings"]["updates"] if began else 0
        k = event.get("round", 1)
        return k * length if event["event"] == "judge" else (k - 1) * length + event.get("update", 0)

    def _log_sheets(self, name: str, k: int, step: int) -> None:
        for title, path in (("held-out captions", self._run.sheet_path(k)), ("your prompts", self._run.prompts_path(k))):
            if path.exists():
                _log_picture(name, self._open[name], title, _shrunk(path), step)


def numbers(event: Event) -> dict[str, float]:
    """The numbers of an event, by "event/key"; those of a list each by its place."""
    found = {}
    for key, value in event.items():
        for place, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if type(each) in (int, float) and key not in ("time", "round", "update"):
                found[f"{event['event']}/{key}" + ("" if place is None else f"_{place}")] = each
    return found


def _arguments(name: str, run: Run) -> dict[str, Any]:
    """What a tracker is made with, so that a run that goes on goes on there too."""
    began = run.events("begin")
    made = hashlib.sha256(f"{run.name} {began[0]['time'] if began else ''}".encode()).hexdigest()[:32]
    match name:
        case "tensorboard":
            return {"run_name": "tensorboard", "logging_dir": str(run.folder)}
        case "wandb":
            return {"run_name": PROJECT, "name": run.name, "id": made, "resume": "allow", "dir": str(run.folder)}
        case "trackio":
            return {"run_name": PROJECT, "name": run.name, "resume": "allow"}
        case "comet_ml":
            return {"run_name": PROJECT, "experiment_key": made}
        case "mlflow":
            return {"experiment_name": PROJECT, "run_name": run.name}
        case _:
            return {"run_name": PROJECT}


def _log_picture(name: str, tracker: Any, title: str, picture: Image.Image, step: int) -> None:
    if name == "tensorboard":
        tracker.log_images({title: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif name == "trackio":
        import trackio  # pyright: ignore[reportMissingImports]

        tracker.log({title: trackio.Image(picture)}, step=step)
    elif name in ("wandb", "swanlab", "aim", "clearml"):
        tracker.log_images({title: [picture]}, step=step)


def _shrunk(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.thumbnail((SIDE, SIDE))
        return image.convert("RGB")
