"""What one of several processes does in a test: train toy runs, one after the other, as a launcher would have it do."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState

from spinlite.config.load import load_settings
from spinlite.errors import SpinliteError
from spinlite.memory import processes
from spinlite.selfplay import train
from tests.toy import TOY, Quiet


class Job(NamedTuple):
    """A toy run: its folder, its pictures, its settings."""

    folder: Path
    data: Path
    words: list[str]
    kill: tuple[int, int] = (-1, -1)  # which process is killed, in which of its updates


class Ended(NamedTuple):
    code: int | None
    said: str  # the problem and the fix of the error that ended it


def together(count: int, jobs: list[Job], folder: Path) -> list[Ended]:
    """How `count` processes end that train these runs together.

    They are copies of this process where that can be (fork): then none has to import torch anew.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    started = [context.Process(target=_work, args=(i, count, port, jobs, folder)) for i in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    said = [(folder / str(i)).read_text(encoding="utf-8") if (folder / str(i)).exists() else "" for i in range(count)]
    return [Ended(process.exitcode, text) for process, text in zip(started, said, strict=True)]


def _work(number: int, count: int, port: int, jobs: list[Job], folder: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ |= address | {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    PartialState._reset_state()  # a fork holds that of the tests before, which stood alone
    try:
        for job in jobs:
            _train(job)
        processes.leave()
    except SpinliteError as error:
        (folder / str(number)).write_text(str(error), encoding="utf-8")
        os._exit(1)


def _train(job: Job) -> None:
    add_up, updates = processes.sum_gradients, 0

    def sum_gradients(parameters: Any) -> None:
        nonlocal updates
        updates += 1
        if (processes.number(), updates) == job.kill:
            os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        add_up(parameters)

    processes.sum_gradients = sum_gradients
    try:
        train(load_settings(TOY, job.words, data__folder=str(job.data)), job.folder, Quiet())
    finally:
        processes.sum_gradients = add_up
