"""The one exception that a user is meant to read."""

from functools import partial
from typing import Any


class SpinliteError(Exception):
    """Something that the user can fix: `problem` says what is wrong and where, `fix` the one thing to do about it.

    The command line prints both lines without a traceback and exits with code 1.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}\nfix: {fix}")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> Any:
        """To be sent to another process."""
        return partial(SpinliteError, fix=self.fix), (self.problem,)


STOPPED = "\nstopped. Nothing is lost: type the same command again to go on from here."  # after Ctrl-C
