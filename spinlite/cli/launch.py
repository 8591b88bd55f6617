"""Starts several processes that train one run together, with torch's own launcher."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from spinlite.errors import SpinliteError

OPTION = "--processes"


def launch(count: int, words: Sequence[str]) -> int:
    """`spinlite WORDS` in `count` processes on this computer, one for each card; returns the exit code.

    Raises SpinliteError if one of them ends before its time.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("USE_LIBUV", "0" if os.name == "nt" else "1")  # torch for Windows is built without it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it reports in tracebacks
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the processes themselves: they finish their step
    config = LaunchConfig(
        1, 1, count, run_id="spinlite", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "spinlite", *without(words))
    except ChildFailedError as error:
        first, failure = error.get_first_failure()
        if failure.exitcode in (1, 130):  # it has said why
            return failure.exitcode
        how = f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
        problem = f"process {first} of {count} {how}"
        raise SpinliteError(problem, fix="type the same command again: it goes on from the last save") from None
    except SignalException:
        return 130
    return 0


def without(words: Sequence[str]) -> list[str]:
    """The words of a command without the option, which each process would follow again."""
    return [w for i, w in enumerate(words) if w.partition("=")[0] != OPTION and not (i and words[i - 1] == OPTION)]
