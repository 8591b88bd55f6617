"""Calls measured in turns: work, peak memory, and times that a busy computer skews for all of them alike."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from spinlite.bench.meter import measure_peak

Held = Callable[[], Iterable[Tensor]]
ATTENTION: dict[Any, Any] = {  # a CPU's, which torch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda slope, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(slope, q, k, v),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Something to measure: `run` handles so many samples. `around` holds what only it needs on the device while it runs."""

    name: str
    unit: str  # what a sample is: image, fake, pair, draw
    samples: int
    run: Callable[[], object]
    held: Held = tuple  # tensors that it needs besides the weights
    scale: float = 1.0  # of the time and work of the whole, where a part is run
    planned: int | None = None  # bytes at the most, by the plan
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class Row:
    """A call as measured. Without figures: it ran out of memory."""

    name: str
    unit: str
    samples: int
    seconds: float | None = None  # a sample, the median
    peak: int | None = None  # bytes
    work: float | None = None  # floating point operations a sample, as torch counts them
    times: list[float] = field(default_factory=list)  # seconds a sample, turn by turn
    planned: int | None = None  # bytes, by the plan


def measure_in_turns(
    calls: Sequence[Call], steps: int, device: torch.device, weights: Held, told: Callable[[], None]
) -> list[Row]:
    """Each call once to warm up and count its work, once to meter it, then `steps` times timed, all in turns.

    `weights` are in memory throughout; `told` hears of every call that has ended.
    """
    work: dict[str, float] = {}
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {call.name: [] for call in calls}
    for turn in range(steps + 2):
        for call in calls:
            with contextlib.suppress(torch.OutOfMemoryError), call.around():
                if turn == 0:
                    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
                        call.run()
                    work[call.name] = call.scale * counter.get_total_flops() / call.samples
                elif turn == 1 and call.name in work:
                    with measure_peak(device, [*weights(), *call.held()]) as peak:
                        call.run()
                    peaks[call.name] = peak.bytes
                elif call.name in peaks:
                    times[call.name].append(call.scale * _timed(call.run, device) / call.samples)
            told()
    return [
        Row(c.name, c.unit, c.samples, statistics.median(times[c.name]), peaks[c.name], work[c.name], times[c.name], c.planned)
        if times[c.name] else Row(c.name, c.unit, c.samples, planned=c.planned)
        for c in calls
    ]  # fmt: skip


def ratio(mine: Row, other: Row) -> tuple[float, float, float] | None:
    """(time, peak, work) of a sample of one row in terms of another's; time by the median over turns of what stood side by
    side. None where one of them did not fit."""
    if not (mine.times and other.times and mine.peak and other.peak):
        return None
    side_by_side = [a / b for a, b in zip(mine.times, other.times, strict=True)]
    return statistics.median(side_by_side), mine.peak / other.peak, (mine.work or 0) / (other.work or 1)


def together(name: str, one: Row, other: Row) -> Row:
    """Two rows of which one is done after the other."""
    if not (one.times and other.times and one.peak and other.peak):
        return Row(name, one.unit, one.samples)
    times = [a + b for a, b in zip(one.times, other.times, strict=True)]
    work = (one.work or 0) + (other.work or 0)
    return Row(name, one.unit, one.samples, statistics.median(times), max(one.peak, other.peak), work, times)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
