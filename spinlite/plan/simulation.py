"""What a call would take, found by calling it on tensors without data: the real code, the real modules, no memory, no work.

Tensors of torch's meta device have a shape, a type and a storage of a size, and nothing in it. Every operation is seen on its
way; a storage counts from when it is made until nothing holds it, going back through the graph too.
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
SAMPLES = 61  # of a rehearsed batch: a prime that divides no width of a network, so that what grows with the batch is seen
MOST = 512  # samples at once that a cost is asked for
Size = tuple[int, int]  # bytes: (for each sample, besides)


@dataclass(frozen=True)
class Cost:
    """What a call takes, for every batch size: it is a straight line between two events."""

    peaks: list[Size]  # of what it allocates; the peak is the highest of these lines
    kept: Size  # what a graph holds when it stands, before the way back
    work: list[tuple[int, int, int, int]]  # (times, operations a sample, bytes a sample read and written, bytes besides)

    def peak(self, samples: int, under: Size = (0, 0)) -> int:
        """Bytes at the most, with what is `under` it throughout."""
        return max(samples * (each + under[0]) + fixed + under[1] for each, fixed in self.peaks)

    def seconds(self, samples: float, operations: float, bytes_: float, start: float) -> float:
        """On a device of so many operations and bytes a second: each step takes the longer of the two, and at least `start`."""
        return sum(
            times * max(samples * work / operations, (samples * each + fixed) / bytes_, start)
            for times, work, each, fixed in self.work
        )

    def operations(self) -> int:
        """Floating point operations a sample, as torch's counter counts them."""
        return sum(times * work for times, work, _, _ in self.work)


class Simulation(TorchDispatchMode):
    """Follows storages and work while it is active. Results moved to the CPU stay on the meta device, and count no more."""

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__()
        self._samples = samples
        self._alive: dict[int, tuple[Any, Size]] = {}
        self.now: Size = (0, 0)
        self._peaks: list[Size] = [(0, 0)]
        self._work: Counter[tuple[int, int, int]] = Counter()

    def cost(self) -> Cost:
        """Of what was called since the mode was entered; `kept` is what is there now."""
        highest = {max(self._peaks, key=lambda line, n=n: n * line[0] + line[1]) for n in range(1, MOST + 1)}
        return Cost(sorted(highest), self.now, [(times, *row) for row, times in sorted(self._work.items())])

    def _follow(self, given: list[Tensor], made: list[Tensor]) -> None:
        """Count the storages that were not among the given ones until nothing holds them."""
        there = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive or key in there:
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
        away = func is torch.ops.aten._to_copy.default and args[0].is_meta and "cpu" in str(kwargs.get("device"))
        made = func(*args, **(kwargs | {"device": META} if away else kwargs))
        if away:
            return made
        given, found = _tensors((args, kwargs)), _tensors(made)
        self._follow(given, found)
        if not func.is_view and (given or found):
            sizes = [self._split(t.numel() * t.element_size()) for t in given + found]
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=made) if formula else 0
            self._work[flops // self._samples, sum(each for each, _ in sizes), sum(fixed for _, fixed in sizes)] += 1
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_meta]


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as a GPU computes it, without a matrix of scores. Without data, torch would fall back to one that makes it."""
    usual = F.scaled_dot_product_attention

    def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = flash  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def simulate(call: Callable[[], Any], samples: int = SAMPLES, back: bool = False) -> Cost:
    """The cost of a call on meta tensors of so many samples; with `back`, of the way back from its sum too.

    Where it reads numbers, which aren't there, it ends: a picture has been computed by then.
    """
    with fused_attention(), Simulation(samples) as mode:
        result = None
        with contextlib.suppress(TypeError, NotImplementedError):
            result = call()
        kept = mode.now
        if back:
            result.sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
        return replace(mode.cost(), kept=kept)
