"""Simulates a call on meta tensors: the real code and the real modules run, but need no memory and do no work.

Tensors on torch's meta device have a shape, a type and a storage size, but no data. Every operation is observed; a storage
counts from its creation until nothing holds it, in the backward pass too.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
SAMPLES = 61  # in a simulated batch: a prime that divides no layer width shows what grows with the batch
MOST = 512  # largest batch that a cost is computed for
Size = tuple[int, int]  # bytes: (per sample, fixed)


@dataclass(frozen=True)
class Cost:
    """What a call needs, for every batch size n: memory at each moment is a straight line, per sample x n + fixed."""

    peaks: list[Size]  # lines of allocated memory; the peak is the highest of them
    kept: Size  # what the finished graph holds, before the backward pass
    work: list[tuple[int, int, int, int]]  # (times, operations a sample, bytes moved a sample, fixed bytes)

    def peak(self, samples: int, under: Size = (0, 0)) -> int:
        """Peak in bytes, with `under` held all the time."""
        return max(samples * (each + under[0]) + fixed + under[1] for each, fixed in self.peaks)

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
    """Counts storages and work while it is active. Results moved to the CPU stay on the meta device, and no longer count."""

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        self._samples = samples
        self._alive: dict[int, tuple[Any, Size]] = {}
        self.now: Size = (0, 0)
        self._peaks: list[Size] = [(0, 0)]
        self._work: Counter[tuple[int, int, int]] = Counter()

    def cost(self) -> Cost:
        """The cost of everything since the mode was entered; `kept` is what is alive now."""
        highest = {max(self._peaks, key=lambda line, n=n: n * line[0] + line[1]) for n in range(1, MOST + 1)}
        return Cost(sorted(highest), self.now, [(times, *row) for row, times in sorted(self._work.items())])

    def _follow(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count the storages that are new in the outputs until nothing holds them."""
        old = {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive or key in old:
                continue
            size = self._split(storage.nbytes())
            self._alive[key] = (weakref.ref(storage, lambda _, key=key: self._drop(key)), size)
            self.now = (self.now[0] + size[0], self.now[1] + size[1])
            if not any(each >= self.now[0] and fixed >= self.now[1] for each, fixed in self._peaks):
                self._peaks = [p for p in self._peaks if p[0] > self.now[0] or p[1] > self.now[1]] + [self.now]

    def _drop(self, key: int) -> None:
        _, size = self._alive.pop(key)
        self.now = (self.now[0] - size[0], self.now[1] - size[1])

    def _split(self, number: int) -> Size:
        each, rest = divmod(number, self._samples)
        return (0, number) if rest or self._samples == 1 else (each, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_cpu = func is torch.ops.aten._to_copy.default and args[0].is_meta and "cpu" in str(kwargs.get("device"))
        result = func(*args, **(kwargs | {"device": META} if to_cpu else kwargs))
        if to_cpu:
            return result
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        self._follow(inputs, outputs)
        if not func.is_view and (inputs or outputs):
            sizes = [self._split(t.numel() * t.element_size()) for t in inputs + outputs]
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            self._work[flops // self._samples, sum(each for each, _ in sizes), sum(fixed for _, fixed in sizes)] += 1
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_meta]


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


def simulate(call: Callable[[], Any], samples: int = SAMPLES, back: bool = False) -> Cost:
    """The cost of a call on meta tensors of so many samples; with `back`, of the backward pass from its sum too.

    The call ends early where it reads numbers, which meta tensors do not have; by then a picture has been computed.
    """
    with fused_attention(), Simulation(samples) as mode:
        result = None
        with contextlib.suppress(TypeError, NotImplementedError):
            result = call()
        kept = mode.now
        if back:
            result.sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
        return replace(mode.cost(), kept=kept)
