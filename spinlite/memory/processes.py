"""Several processes that train one run together: on the cards of one computer, or of several.

Every process holds the base and the LoRA and takes the same steps. Work that can be split is split (`spread`, `sum_gradients`);
whatever comes out of it is the same in every process. The first process, the lead, owns the run folder and writes the caches.
With one process nothing here does anything.

accelerate starts the group (from the environment that torchrun and `accelerate launch` set); torch.distributed does the rest.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn

from spinlite.errors import SpinliteError

T = TypeVar("T")
R = TypeVar("R")


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _joined() else 1


def number() -> int:
    """Which of them this one is, from 0 on."""
    return distributed.get_rank() if _joined() else 0


def leads() -> bool:
    """Whether this process owns the run folder."""
    return number() == 0


def spread(items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """(item, work(item)) for every item, in order, in every process; the work is done once, by one of them.

    As many items are worked on at the same time as there are processes. An error in one process is raised in all, so that all
    do the same about it: lower the memory settings, undo the round, or stop.
    """
    rest = iter(items)
    while some := list(islice(rest, count())):
        mine = some[number()] if number() < len(some) else None
        results = gather(lambda mine=mine: None if mine is None else work(mine))
        yield from zip(some, cast(list[R], results), strict=False)


def gather(work: Callable[[], R]) -> list[R]:
    """What `work` returns in each process, in their order. Raises everywhere what it raises anywhere."""
    if count() == 1:
        return [work()]
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    answers: list[Any] = [None] * count()
    try:
        distributed.all_gather_object(answers, (result, error), group=_messages())
    except RuntimeError:
        raise error or _lost() from None
    raised = error or next((other for _, other in answers if other), None)
    if raised:
        raise raised
    return [answer for answer, _ in answers]


def from_lead(work: Callable[[], R]) -> R:
    """What `work` returns in the lead, in every process. Only the lead does it."""
    return gather(lambda: work() if leads() else None)[0]  # pyright: ignore[reportReturnType]


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes; afterwards each has the sum. A process without gradients counts as zeros.

    Raises SpinliteError if one of them has ended.
    """
    if count() == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    try:
        distributed.all_reduce(flat)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        raise _lost() from None
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)


@contextlib.contextmanager
def writing(store: Any, items: int) -> Iterator[None]:
    """Within the block the lead adds so many items to a store (`if leads(): store.add(...)`).

    Afterwards every process finds what it holds.
    """
    store.expect(items)
    with store if leads() else contextlib.nullcontext():
        yield
    if count() > 1:
        gather(lambda: None)
        store.reread()


def leave() -> None:
    """Leave the group, at the end of the program."""
    if _joined():
        distributed.destroy_process_group()


def _lost() -> SpinliteError:
    return SpinliteError(
        "another process of this run has ended", fix="type the same command again: it goes on from the last save"
    )


def _joined() -> bool:
    """Whether there is a group. Joins it if the environment says that there is one to join."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    return True


@cache
def _messages() -> Any:
    """The group for whatever is no gradient: it needs no card."""
    return distributed.new_group(backend="gloo", timeout=timedelta(days=1))  # the lead may take its time
