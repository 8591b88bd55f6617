"""Measures peak memory: by the allocator's own count on a CUDA card, by the sizes of all live tensors elsewhere."""

import contextlib
import gc
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class Peak:
    """The most bytes that tensors took while the block of `measure_peak` ran."""

    bytes: int = 0


@contextlib.contextmanager
def measure_peak(device: torch.device, held: Iterable[Tensor]) -> Iterator[Peak]:
    """Measure the peak memory of a block; the figure is there at its end. `held`: tensors from before it, mostly weights.

    On a CUDA card everything that torch has allocated counts, so free what does not belong to the block first. Elsewhere only
    `held` and the tensors that the block touches count, not the memory that an operation takes and frees within itself.
    """
    gc.collect()
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    with Live(held) as live:
        yield peak
    peak.bytes = live.peak


class Live(TorchDispatchMode):
    """Follows every storage that an operation reads or makes until nothing holds it. Tensors may share one."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, made)):
            if isinstance(value, Tensor):
                self._see(value)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size
