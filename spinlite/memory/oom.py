"""Where memory runs out: the next cheaper setting, said and kept, and the same work once more."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from spinlite.errors import SpinliteError
from spinlite.memory.device import Device, Levers

T = TypeVar("T")
Phase = Literal["encode", "play", "opponent", "learn", "judge", "sheet"]
PHASE_WORDS: dict[Phase, str] = {
    "encode": "encoding", "play": "playing", "opponent": "measuring the opponent", "learn": "learning", "judge": "judging",
    "sheet": "drawing the sample sheet",
}  # fmt: skip
SIGNS = (  # of RuntimeErrors and OSErrors that are a lack of memory, in lower case
    "out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "cublas_status_not_initialized",
    "paging file is too small",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own, and what the CPU, cuBLAS, cuDNN, bitsandbytes, MPS raise."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in SIGNS)


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Memory that ran out where there is nothing to fall back to, as an error for the user."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        problem = f"out of memory: {str(error).partition(chr(10))[0] or type(error).__name__}"
    else:
        return
    raise SpinliteError(problem, fix="close what else uses this memory and run the same command: it goes on from its last save")


class Fallback:
    """The levers as they stand in each phase, and the way down where memory runs out.

    What was given up is a list of {"time", "phase", "lever", "was", "to"}, to be kept and given again when the run goes on.
    It binds the phase it happened in alone: an encoder that needs smaller batches says nothing about play.
    """

    def __init__(self, device: Device, pairs: bool, dropped: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
        """`pairs`: a sample has two policy errors, so that one graph at a time saves something. What is given up is added to
        `dropped`, then told in words."""
        self._device, self._pairs, self._tell = device, pairs, tell
        self.dropped = dropped

    def levers(self, phase: Phase) -> Levers:
        """How a phase is fitted into memory: as chosen, less what was given up."""
        found = self._device.levers
        for drop in self.dropped:
            if drop["phase"] == phase:
                was, to = getattr(found, drop["lever"]), drop["to"]
                found = replace(found, **{drop["lever"]: to if was is None or isinstance(to, bool) else min(was, to)})
        return found

    def run(self, phase: Phase, size: int, attempt: Callable[[Levers], T]) -> T:
        """What `attempt` returns, called with ever cheaper levers until memory suffices. `size`: as many samples as it could
        take at once. It must be such that a call that failed half-way changes nothing, or nothing that isn't made again alike.

        Raises SpinliteError where nothing cheaper is left.
        """
        while True:
            try:
                return attempt(self.levers(phase))
            except (MemoryError, RuntimeError, OSError) as error:
                if not out_of_memory(error):
                    raise
            self._free()  # here, where the error and the tensors in its frames are gone
            self._lower(phase, size)

    def _lower(self, phase: Phase, size: int) -> None:
        levers = self.levers(phase)
        lever, to = self._cheaper(phase, levers, size)
        was = getattr(levers, lever)
        self.dropped.append({"time": round(time.time(), 6), "phase": phase, "lever": lever, "was": was, "to": to})
        words = {"one_graph": "one graph at a time", "checkpointing": "activations are computed again going back"}
        how = words.get(lever, f"{to} at once")
        self._tell(f"out of memory {PHASE_WORDS[phase]}: from here on {how} (memory.{lever} was {_toml(was)})")

    def _cheaper(self, phase: Phase, levers: Levers, size: int) -> tuple[str, bool | int]:
        if phase == "learn":
            if self._pairs and not levers.one_graph:
                return "one_graph", True
            if not levers.checkpointing:
                return "checkpointing", True
        lever = "micro_batch" if phase == "learn" else "play_batch"
        at_once = min(getattr(levers, lever) or size, size)
        if at_once > 1:
            return lever, (at_once + 1) // 2
        raise SpinliteError(
            f"out of memory {PHASE_WORDS[phase]}, one at a time and with every saving there is",
            fix="close what else uses this memory and run the same command"
            + ('; or start a run with memory.quantize = "nf4" and another --name' if levers.quantize == "none" else ""),
        )

    def _free(self) -> None:
        gc.collect()
        if self._device.device.type != "cpu":
            torch.get_device_module(self._device.device).empty_cache()


def _toml(value: bool | int | None) -> str:
    return "the whole batch" if value is None else str(value).lower()
