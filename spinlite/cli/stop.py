"""Ctrl-C and SIGTERM: the first ends the program after the step under way, the second at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from spinlite.cli.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ASKED = "\nstopping after this step, and saving. Ctrl-C again leaves at once.\n"
LEFT = "\nstopped at once. Nothing is lost but the last seconds: type the same command again to go on from the last save.\n"
SHOW_CURSOR = "\x1b[?25h"


@contextlib.contextmanager
def stoppable(console: Console) -> Iterator[None]:
    """While the block runs, signals only ask: `Console.phase` raises KeyboardInterrupt where a step has ended.

    In the middle of a step an exception would leave half-done work behind, and libraries turn it into errors of their own.
    """

    def asked(*_: Any) -> None:
        if console.stopping:
            _tell((SHOW_CURSOR if sys.stderr.isatty() else "") + LEFT)
            os._exit(130)  # whatever is on the disk is whole, and the lock ends with the process
        console.stopping = True
        _tell(ASKED)

    before = {number: signal.signal(number, asked) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    """Write past the streams' buffers: a signal may come while they are being written."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
