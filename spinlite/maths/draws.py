"""Every random number of a run, as a function of names that say what it is for, e.g. ("learn", seed, round, sample, epoch).

Nothing here keeps a state: the same names (ints and strings) give the same numbers on every device, in every batch layout and
after a resume.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill [0, 1) evenly at any count


def seed_of(*names: int | str) -> int:
    """A 63-bit seed from names: the first bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A random generator on the CPU, seeded by names."""
    return torch.Generator().manual_seed(seed_of(*names))


def gaussian(shape: Sequence[int], *names: int | str) -> Tensor:
    """Unit noise of this shape, seeded by names; fp32, on the CPU."""
    return torch.randn(tuple(shape), generator=generator(*names))


def draw(shape: Sequence[int], sample: str, epoch: int, *names: int | str) -> tuple[float, Tensor]:
    """(u, eps) for one sample in one epoch: u in [0, 1) chooses the timestep, eps is unit noise of this shape.

    From epoch to epoch a sample's u moves on by the golden ratio, so even a few epochs see low and high noise. The first u of
    each sample is uniform, so u is uniform over the samples.
    """
    start = torch.rand((), generator=generator("start", *names, sample)).item()
    return (start + epoch * GOLDEN) % 1.0, gaussian(shape, "eps", *names, sample, epoch)


def permutation(count: int, *names: int | str) -> list[int]:
    """A random order of range(count), seeded by names."""
    return torch.randperm(count, generator=generator("order", *names)).tolist()


def partners(count: int, *names: int | str) -> list[int]:
    """For each of range(count) a partner that is not itself; each is a partner once. It is the next on a random circle."""
    circle = permutation(count, "partners", *names)
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return [following[i] for i in range(count)]
