"""What one of several processes does in a test: train toy runs, one after the other, as the command line says.

python -m torch.distributed.run --nproc-per-node 2 -m tests.several JOBS.json
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from spinlite.config.load import load_settings
from spinlite.memory import processes
from spinlite.selfplay import train
from tests.toy import TOY, Quiet


def main(jobs: Path) -> None:
    """Each job: {"folder", "data", "set": [...], "kill": (which process, in which of its updates)}."""
    torch.set_num_threads(1)
    add_up = processes.sum_gradients
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        settings, updates = load_settings(TOY, job["set"], data__folder=job["data"]), 0

        def sum_gradients(parameters: Any, job: Any = job) -> None:
            nonlocal updates
            updates += 1
            if [processes.number(), updates] == job.get("kill"):
                os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            add_up(parameters)

        processes.sum_gradients = sum_gradients
        train(settings, Path(job["folder"]), Quiet())
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
