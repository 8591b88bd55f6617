"""When memory runs out: lower a memory setting, say so, remember it, and do the same work again."""

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
    "encode": "encoding pictures", "play": "playing", "opponent": "measuring the opponent", "learn": "learning",
    "judge": "judging", "sheet": "drawing the sample sheet",
}  # fmt: skip
SIGNS = (  # a RuntimeError or OSError with one of these, in lower case, is a lack of memory
    "out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "cublas_status_not_initialized",
    "paging file is too small", "unable to find an engine to execute this computation",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, in torch, on the CPU, in cuBLAS, cuDNN, bitsandbytes or on MPS."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in SIGNS)


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn a lack of memory that no cheaper setting can help into a SpinliteError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        problem = f"out of memory: {str(error).partition(chr(10))[0] or type(error).__name__}"
    else:
        return
    fix = "close other programs that use this memory and run the same command: it continues from its last save"
    raise SpinliteError(problem, fix=fix)


class Fallback:
    """The memory settings of each phase, lowered step by step when memory runs out.

    Each change is an entry {"time", "phase", "lever", "was", "to"} of `dropped`. The run keeps this list, so it starts with the
    lowered settings when it is continued. A change applies to its own phase only: an encoder that needs smaller batches says
    nothing about play.
    """

    def __init__(self, device: Device, pairs: bool, dropped: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
        """`pairs`: the method has two policy errors, so one activation graph at a time saves memory. `tell` is called with each
        change in words, after it was added to `dropped`."""
        self._device, self._pairs, self._tell = device, pairs, tell
        self.dropped = dropped

    def levers(self, phase: Phase) -> Levers:
        """The memory settings of a phase: as they were chosen, with its changes in `dropped`."""
        levers = self._device.levers
        for drop in self.dropped:
            if drop["phase"] == phase:
                was, to = getattr(levers, drop["lever"]), drop["to"]
                levers = replace(levers, **{drop["lever"]: to if was is None or isinstance(to, bool) else min(was, to)})
        return levers

    def run(self, phase: Phase, size: int, attempt: Callable[[Levers], T]) -> T:
        """Call `attempt` with cheaper and cheaper memory settings until memory is enough; returns what it returns.

        `size` is the largest batch that the work could use. `attempt` must be repeatable: a call that failed half-way must
        leave nothing behind, or only what the next call makes again in the same way.

        Raises SpinliteError if memory is too small even with the cheapest settings.
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
        words = {"one_graph": "one activation graph at a time", "checkpointing": "gradient checkpointing"}
        how = words.get(lever, f"{to} samples per batch" if to > 1 else "1 sample per batch")
        self._tell(f"out of memory while {PHASE_WORDS[phase]}: continuing with {how} (memory.{lever} was {_in_words(was)})")

    def _cheaper(self, phase: Phase, levers: Levers, size: int) -> tuple[str, bool | int]:
        if phase == "learn":
            if self._pairs and not levers.one_graph:
                return "one_graph", True
            if not levers.checkpointing:
                return "checkpointing", True
        lever = "micro_batch" if phase == "learn" else "play_batch"
        together = min(getattr(levers, lever) or size, size)
        if together > 1:
            return lever, (together + 1) // 2
        raise SpinliteError(
            f"out of memory while {PHASE_WORDS[phase]}, even with 1 sample per batch and every memory setting at its cheapest",
            fix="close other programs that use this memory and run the same command"
            + ('; or start a run with memory.quantize = "nf4" and another --name' if levers.quantize == "none" else ""),
        )

    def _free(self) -> None:
        gc.collect()
        if self._device.device.type != "cpu":
            torch.get_device_module(self._device.device).empty_cache()


def _in_words(value: bool | int | None) -> str:
    return "the whole batch" if value is None else str(value).lower()
