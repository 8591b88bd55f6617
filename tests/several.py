"""What one of several processes does in a test: train toy runs, one after the other, as the command line says.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.several JOBS.json
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from spinlite.config.load import load_settings
from spinlite.memory import processes
from spinlite.selfplay import train
from tests.toy import TOY, Quiet


def main(jobs: Path) -> None:
    """Each job: {"folder", "data", "set": [...], "kill": [process, update] or null}."""
    torch.set_num_threads(1)
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        settings = load_settings(TOY, job["set"], data__folder=job["data"])
        number, update = job.get("kill") or (-1, 0)

        def plug(title: str, done: int, number: int = number, update: int = update) -> bool:
            if processes.number() == number and "learn" in title and done == update:
                os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            return False

        train(settings, Path(job["folder"]), Quiet(plug))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
