"""Finds out the facts about this computer: first without torch, which may be broken, then by trials in other processes."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spinlite.doctor.cards import find_cards, registered
from spinlite.doctor.computer import Computer, Torch, Trial

PACKAGE = Path(__file__).parents[1]
NAMES = ("torch", "bf16", "fp16", "sdpa", "xformers", "adamw8bit", "nf4", "step")
SECONDS = 180.0  # for one trial; importing torch for the first time can take a minute on Windows


def examine(runs: Path, on_trial: Callable[[str], None] = lambda name: None) -> Computer:
    """Everything about this computer. `on_trial` gets the name of each trial before it starts; runs go to `runs`."""
    cards, driver_cuda = find_cards()
    trials, torch = run_trials(NAMES, on_trial)
    tested = _tested()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface", "hub"))
    kernel = platform.release().lower()
    return Computer(
        system=platform.system(), release=_release(), machine=platform.machine(),
        wsl=(2 if "wsl2" in kernel or not kernel.startswith("4.4.") else 1) if "microsoft" in kernel else None,
        long_paths=registered(r"SYSTEM\CurrentControlSet\Control\FileSystem", "LongPathsEnabled", bool),
        python=sys.version_info[:3], bits=8 * struct.calcsize("P"),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        cards=tuple(cards), driver_cuda=driver_cuda, visible=os.environ.get("CUDA_VISIBLE_DEVICES"), torch=torch, trials=trials,
        installed={name: version for name in tested if (version := _version(name))}, tested=tested, unmet=tuple(_unmet()),
        memory=_memory(), runs=str(runs.absolute()), runs_free=_free(runs), hub=str(hub), hub_free=_free(hub),
    )  # fmt: skip


def run_trials(
    names: Sequence[str], on_trial: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, Trial], Torch | None]:
    """Run the trials in order. A trial that crashes or hangs has failed; the rest goes on in a new process."""
    trials: dict[str, Trial] = {}
    torch = None
    while left := [name for name in names if name not in trials]:
        on_trial(left[0])
        lines, ending = _process(left)
        for line in lines:
            name = line["trial"]
            if "found" in line:
                facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in line["found"].items()}
                torch = Torch(**facts)
            missing = line.get("missing", False)
            trials[name] = Trial("error" not in line and not missing, line.get("error") or line.get("said", ""), missing)
            if nexts := [n for n in names if n not in trials]:
                on_trial(nexts[0])
        if stopped := [name for name in left if name not in trials]:
            trials[stopped[0]] = Trial(False, ending)
        if "torch" in trials and not trials["torch"].ok:
            break  # nothing else can run
    return trials, torch


def _process(names: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """(what the trials reported, how the process ended if it did not finish)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    lines = []
    late = False
    command = [sys.executable, "-P", "-m", "spinlite.doctor.trials", *names]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):

        def stop() -> None:
            nonlocal late
            late = True
            process.kill()

        assert process.stdout
        timer = threading.Timer(SECONDS, stop)
        timer.start()
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                report = json.loads(line)
                if isinstance(report, dict) and "trial" in report:
                    lines.append(report)
                    timer.cancel()
                    timer = threading.Timer(SECONDS, stop)
                    timer.start()
        code = process.wait()
        timer.cancel()
        errors.seek(0)
        last = " ".join(errors.read().decode(errors="replace").split())[-400:]
    ended = f"did not end within {SECONDS:.0f} s" if late else f"ended its process (code {code})"
    return lines, f"{ended}: {last}".removesuffix(": ")


def _release() -> str:
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, kernel {platform.release()}"
    return f"{platform.release()} {platform.version()}"


def _free(folder: Path) -> int | None:
    """Free MiB on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    try:
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free // 2**20
    except (OSError, StopIteration):
        return None


def _memory() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().total // 2**20


def _tested() -> dict[str, str]:
    """The versions that spinlite was tested with, for the packages that it needs."""
    here = PACKAGE / "constraints.txt"  # in a wheel; a checkout has it beside the package
    place = here if here.is_file() else PACKAGE.parent / "constraints.txt"
    lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    required = {_name(text) for text in _requires()}
    return {name: pin for name, pin in pins.items() if name.lower().replace("_", "-") in required}


def _requires() -> list[str]:
    """What spinlite requires, as "torch>=2.6"; of the extras only xformers."""
    try:
        requirements = importlib.metadata.requires("spinlite") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [text for text in requirements if "extra ==" not in text or "xformers" in text]


def _unmet() -> Iterator[str]:
    """Requirements that are not met, each with the installed version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    for text in _requires():
        requirement = Requirement(text)
        version = _version(requirement.name)
        needed = not requirement.marker or requirement.marker.evaluate()
        if needed and (not version or not requirement.specifier.contains(version, prereleases=True)):
            yield f"{requirement.name}{requirement.specifier} ({version or 'missing'})"


def _name(requirement: str) -> str:
    return (re.match(r"[\w.-]+", requirement) or [""])[0].lower().replace("_", "-")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
