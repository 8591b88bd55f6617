"""Measures calls in turns: work, peak memory, and time. A busy computer then slows all of them alike."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from spinlite.bench.meter import measure_peak
from spinlite.memory.oom import out_of_memory

Held = Callable[[], Iterable[Tensor]]
ATTENTION: dict[Any, Any] = {  # on a CPU, which torch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda slope, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(slope, q, k, v),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Something to measure: `run` handles `samples` samples, within `around`, which may bring what it needs to the device."""

    name: str
    unit: str  # what a sample is: image, fake, pair, draw
    samples: int
    run: Callable[[], object]
    held: Held = tuple  # tensors that it needs besides the weights
    scale: float = 1.0  # factor on time and work, if `run` is only a part of the whole
    planned: int | None = None  # peak bytes, by the plan
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class Row:
    """A measured call. It has no figures if it ran out of memory."""

    name: str
    unit: str
    samples: int
    seconds: float | None = None  # per sample, the median
    peak: int | None = None  # bytes
    work: float | None = None  # floating point operations per sample, as torch counts them
    times: list[float] = field(default_factory=list)  # seconds per sample, turn by turn
    planned: int | None = None  # peak bytes, by the plan


def measure_in_turns(
    calls: Sequence[Call], steps: int, device: torch.device, weights: Held, report_run: Callable[[], None]
) -> list[Row]:
    """Run each call once to warm up and count its work, once to measure its memory, then `steps` times for time, all in turns.

    `weights` are in memory all the time. `report_run` is called after every run.
    """
    work: dict[str, float] = {}
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {call.name: [] for call in calls}
    for turn in range(steps + 2):
        for call in calls:
            with _if_it_fits(), call.around():
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
            report_run()
    return [
        Row(c.name, c.unit, c.samples, statistics.median(times[c.name]), peaks[c.name], work[c.name], times[c.name], c.planned)
        if times[c.name] else Row(c.name, c.unit, c.samples, planned=c.planned)
        for c in calls
    ]  # fmt: skip


def ratio(row: Row, other: Row) -> tuple[float, float, float] | None:
    """(time, peak, work) of a sample of a row, divided by the other row's. The time ratio is the median over turns.

    None if one of the rows did not fit into memory.
    """
    if not (row.times and other.times and row.peak and other.peak):
        return None
    side_by_side = [a / b for a, b in zip(row.times, other.times, strict=True)]
    return statistics.median(side_by_side), row.peak / other.peak, (row.work or 0) / (other.work or 1)


def together(name: str, one: Row, other: Row) -> Row:
    """The row of two calls done one after the other."""
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


@contextlib.contextmanager
def _if_it_fits() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
