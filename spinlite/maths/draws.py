"""Every random number of a run, as a function of what it is for.

Nothing here keeps a state: the same names give the same numbers on every device, in every batch layout, and after a
resume. Names are ints and strings, e.g. ("learn", seed, round, sample, epoch).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill [0, 1) evenly at any count


def seed_of(*names: int | str) -> int:
    """A 63-bit seed named by its purpose."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A CPU generator named by its purpose."""
    return torch.Generator().manual_seed(seed_of(*names))


def gaussian(shape: Sequence[int], *names: int | str) -> Tensor:
    """Unit noise of the given shape, fp32, on the CPU."""
    return torch.randn(tuple(shape), generator=generator(*names))


def draw(shape: Sequence[int], sample: str, epoch: int, *names: int | str) -> tuple[float, Tensor]:
    """(u, eps) for one sample in one epoch: u in [0, 1), eps of the given shape.

    Over the epochs of one sample u steps by the golden ratio, so that even a few epochs see low and high noise; over
    samples its start is uniform, so that u stays uniform.
    """
    start = torch.rand((), generator=generator("start", *names, sample)).item()
    return (start + epoch * GOLDEN) % 1.0, gaussian(shape, "eps", *names, sample, epoch)


def permutation(count: int, *names: int | str) -> list[int]:
    """A permutation of range(count)."""
    return torch.randperm(count, generator=generator("order", *names)).tolist()


def partners(count: int, *names: int | str) -> list[int]:
    """For each of range(count) another one, each taken once: one random circle through all of them."""
    circle = permutation(count, "partners", *names)
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [following[i] for i in range(count)]
