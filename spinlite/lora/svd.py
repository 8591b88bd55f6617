"""Weight changes -> LoRA pairs of a given rank, by singular value decomposition (SVD)."""

import torch
from torch import Tensor

from spinlite.lora.tensors import Pair, norm

ITERATIONS = 4  # of the randomised SVD (Halko et al. 2011, arXiv 0909.4061, alg. 4.4)
SPARE = 16  # columns that it computes beyond the rank, for precision


def lower_rank(pair: Pair, rank: int) -> tuple[Pair, float]:
    """(the nearest pair of at most this rank, its relative error). Exact, and cheap: the SVD is of a (rank, rank) matrix."""
    rank = min(rank, pair.rank)
    left, core_up = torch.linalg.qr(pair.up.flatten(1).double())
    right, core_down = torch.linalg.qr(pair.down.flatten(1).double().T)
    u, s, v = torch.linalg.svd(core_up @ core_down.T)
    root = s[:rank].sqrt()
    up, down = left @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ right.T
    whole = s.square().sum()
    lost = (s[rank:].square().sum() / whole).sqrt().item() if whole > 0 else 0.0
    return _shaped(down, up, pair), lost


def nearest_pair(change: Tensor, rank: int) -> tuple[Pair, float]:
    """A weight change (out, in, ...) -> (a pair of this rank close to it, its relative error), by a randomised SVD."""
    matrix = change.flatten(1).float()
    rank = min(rank, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + SPARE, *matrix.shape), niter=ITERATIONS)
    root = s[:rank].sqrt()
    down, up = (v[:, :rank] * root).T, u[:, :rank] * root
    like = Pair(torch.empty(rank, *change.shape[1:]), torch.empty(len(change), rank, *[1] * (change.ndim - 2)))
    pair = _shaped(down.cpu(), up.cpu(), like)
    size = matrix.norm()
    return pair, ((matrix - up @ down).norm() / size).item() if size > 0 else 0.0


def total_error(errors: dict[str, float], lora: dict[str, Pair]) -> float:
    """The relative error of all changes together, from those of the modules."""
    squares = {name: norm(pair) ** 2 for name, pair in lora.items()}
    whole = sum(squares.values())
    return (sum(errors[name] ** 2 * square for name, square in squares.items()) / whole) ** 0.5 if whole else 0.0


def _shaped(down: Tensor, up: Tensor, like: Pair) -> Pair:
    rank = down.shape[0]
    return Pair(down.float().reshape(rank, *like.down.shape[1:]), up.float().reshape(-1, rank, *like.up.shape[2:]))
