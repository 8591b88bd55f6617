"""The run folder that a process may write to: the lead has the run's own, every other process a copy for as long as it trains.

So each of several processes does all that one does, and nothing else has to know how many there are.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spinlite.memory import processes
from spinlite.runs.lock import hold


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Hold the run folder while the block runs. Raises SpinliteError, in every process, if another command holds it."""
    with contextlib.ExitStack() as stack:
        processes.from_lead(lambda: stack.enter_context(hold(folder)))
        if processes.leads():
            processes.gather(lambda: None)
            yield folder
        else:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / folder.name
            left_out = shutil.ignore_patterns(".lock*", "export", "samples")
            processes.gather(lambda: shutil.copytree(folder, copy, ignore=left_out))
            yield copy
