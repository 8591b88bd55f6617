"""Simulates a call on meta tensors: the real code and the real modules run, but need no memory and do no work.

Tensors on torch's meta device have a shape, a type and a storage size, but no data. Every operation is observed; a storage
counts from its creation until nothing holds it, in the backward pass too.
"""

import contextlib
import math
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from spinlite.plan.meta import META, meta_tensors, run_on_meta

SAMPLES = 61  # in a simulated batch: a prime that divides no layer width shows what grows with the batch
MOST = 512  # largest batch that a cost is computed for
Size = tuple[int, int]  # bytes: (per sample, fixed)
Line = tuple[int, int, int]  # bytes: (per sample, fixed, per sample that is copied)
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a call needs, for every batch size n: memory at each moment is a straight line, per sample x n + fixed.

    Samples that are put together from others are copied; what only that takes is counted apart.
    """

    peaks: list[Line]  # of allocated memory; the peak is the highest of them
    kept: Size  # what is still there at its end
    work: list[tuple[int, int, int, int]]  # (times, operations a sample, bytes moved a sample, fixed bytes)

    def peak(self, samples: int, under: Size = (0, 0), copied: bool = False) -> int:
        """Peak in bytes, with `under` held all the time; `copied`: the samples are put together from others."""
        return max(samples * (each + under[0] + copy * copied) + fixed + under[1] for each, fixed, copy in self.peaks)

    def seconds(self, samples: float, operations: float, bytes_: float, start: float) -> float:
        """Seconds on a device with so many operations and bytes per second. A step takes the longer one, at least `start`."""
        return sum(
            times * max(samples * work / operations, (samples * each + fixed) / bytes_, start)
            for times, work, each, fixed in self.work
        )

    def operations(self) -> int:
        """Floating point operations per sample, as torch's counter counts them."""
        return sum(times * work for times, work, _, _ in self.work)


class Simulation(TorchDispatchMode):
    """Counts storages and work while it is active. Results moved to the CPU stay on the meta device, and no longer count.

    A storage grows with the batch if its size can be divided by the number of samples, or if it is made of one sample of those
    that do: some networks take their samples one by one. Sizes that grow are those of the whole batch here.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        self._samples = samples
        self._alive: dict[int, tuple[Any, Line]] = {}
        self._copying = False
        self._now: Line = (0, 0, 0)
        self._peaks: list[Line] = [self._now]
        self._work: Counter[tuple[int, int, int]] = Counter()

    @property
    def now(self) -> Size:
        """What is alive, without copies."""
        return self._per_sample(self._now)[:2]

    def copy(self, make: Callable[[], T]) -> T:
        """What `make` returns; its storages count as copies."""
        self._copying = True
        try:
            return make()
        finally:
            self._copying = False

    def cost(self) -> Cost:
        """The cost of everything since the mode was entered; `kept` is what is alive now."""
        lines = [self._per_sample(line) for line in self._peaks]
        highest = {
            max(lines, key=lambda line, n=n, copied=copied: n * (line[0] + copied * line[2]) + line[1])
            for n in range(1, MOST + 1) for copied in (0, 1)
        }  # fmt: skip
        return Cost(sorted(highest), self.now, [(times, *row) for row, times in sorted(self._work.items())])

    def _per_sample(self, line: Line) -> Line:
        grows, fixed, copied = line
        return math.ceil(grows / self._samples), fixed, math.ceil(copied / self._samples)

    def _follow(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count the storages that are new in the outputs until nothing holds them."""
        old = {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive or key in old:
                continue
            grows, fixed = self._split(storage.nbytes())
            if fixed and any(map(self._is_of_one_sample, inputs)):
                grows, fixed = fixed, 0
            line = (0, fixed, grows) if self._copying else (grows, fixed, 0)
            self._alive[key] = (weakref.ref(storage, lambda _, key=key: self._drop(key)), line)
            self._add(line, 1)
            if not any(all(map(operator.ge, peak, self._now)) for peak in self._peaks):
                self._peaks = [peak for peak in self._peaks if any(map(operator.gt, peak, self._now))] + [self._now]

    def _drop(self, key: int) -> None:
        self._add(self._alive.pop(key)[1], -1)

    def _add(self, line: Line, sign: int) -> None:
        grows, fixed, copied = self._now
        self._now = (grows + sign * line[0], fixed + sign * line[1], copied + sign * line[2])

    def _is_of_one_sample(self, tensor: Tensor) -> bool:
        """Whether a tensor is what one of the samples has of something that grows."""
        storage = tensor.untyped_storage()
        _, (grows, _, copied) = self._alive.get(storage._cdata, (None, (*self._split(storage.nbytes()), 0)))
        return grows + copied > 0 and tensor.numel() % self._samples > 0

    def _split(self, number: int) -> Size:
        """A size as (of the whole batch, fixed)."""
        return (0, number) if number % self._samples or self._samples == 1 else (number, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_cpu = func is torch.ops.aten._to_copy.default and args[0].is_meta and "cpu" in str(kwargs.get("device"))
        if to_cpu:
            return func(*args, **kwargs | {"device": META})
        inputs = [*meta_tensors(args), *meta_tensors(kwargs.values())]
        result = run_on_meta(func, args, kwargs, inputs)
        outputs = list(meta_tensors((result,)))
        self._follow(inputs, outputs)
        if not func.is_view and (inputs or outputs):
            sizes = [self._split(t.numel() * t.element_size()) for t in inputs + outputs]
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            each = sum(grows for grows, _ in sizes) // self._samples
            self._work[flops // self._samples, each, sum(fixed for _, fixed in sizes)] += 1
        return result


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention without a matrix of scores, as a GPU computes it. On meta tensors torch would fall back to one with it."""
    usual = F.scaled_dot_product_attention

    def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = flash  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


@contextlib.contextmanager
def simulating(samples: int = SAMPLES) -> Iterator[Simulation]:
    """A block whose calls on meta tensors of so many samples are simulated."""
    with fused_attention(), Simulation(samples) as mode:
        yield mode


def simulate(call: Callable[[], Any], samples: int = SAMPLES) -> Cost:
    """The cost of a call on meta tensors of so many samples. What it returns is counted as kept.

    The call ends early where it reads numbers, which meta tensors do not have; by then a picture has been computed.
    """
    with simulating(samples) as mode:
        result = None
        try:
            result = call()
        except (TypeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
        cost = mode.cost()
        del result
        return cost
