"""Timestep weights: how much the error at a time t counts. Every kind has mean 1 over the times that are used."""

import torch
from torch import Tensor

from spinlite.maths.kinds import Weight
from spinlite.maths.paths import Path
from spinlite.maths.times import TimeMap

GAMMA = 5.0  # min-SNR gamma, as in its paper
GRID = 1000  # times over which the mean is taken


def weigh(
    path: Path, kind: Weight, t: Tensor, low: float = 0.0, high: float = 1.0, spread: TimeMap | None = None
) -> Tensor:  # fmt: skip
    """Times (B,) -> weights (B,) on the squared error of the path's own prediction. Their mean over the draws is 1.

    Draws lie in [low, high), as `spread` spreads them (None: evenly).

    | kind         | weight                                                       | source                             |
    |--------------|--------------------------------------------------------------|------------------------------------|
    | "constant"   | 1 for the path's own error                                   | Ho et al. 2020, 2006.11239, eq. 14 |
    | "min-snr"    | min(SNR, 5) for the squared x0 error; for eps min(SNR, 5)/SNR | Hang et al. 2023, 2303.09556       |
    | "transition" | SNR(t') - SNR(t) for the squared x0 error                    | Kingma et al. 2021, 2107.00630     |

    SNR = a^2 / s^2. "transition" is SPIN's beta_t h_t^2 (Yuan et al. 2024) with beta_t = lambda T / (2 spread^2). It is the
    weight of the error in the log density of a sampler step from t to t', with the spread of the true posterior; t' is one
    place of the schedule before t (for flow 1/1000). It is largest where there is little noise.
    """
    if kind == "constant":
        return torch.ones_like(t, dtype=torch.float32)
    grid = path.times((spread or TimeMap()).within((torch.arange(GRID) + 0.5) / GRID, low, high)).to(t.device)
    return _raw(path, kind, t) / _raw(path, kind, grid).mean()


def _raw(path: Path, kind: Weight, t: Tensor) -> Tensor:
    if kind == "min-snr":
        return _snr(path, t).clamp_max(GAMMA) * _x0_share(path, t)
    step = 1e-3 if path.alpha_bar is None else 1
    t = t.clamp_min(2 * step)  # the step to a clean sample has no spread, so no density
    return (_snr(path, t - step) - _snr(path, t)) * _x0_share(path, t)


def _snr(path: Path, t: Tensor) -> Tensor:
    a, s = path.coefficients(t, 1)
    return (a / s).square()


def _x0_share(path: Path, t: Tensor) -> Tensor:
    """Squared x0 error for each unit of squared error of the path's own prediction, (B,)."""
    one = torch.ones_like(t, dtype=torch.float32)
    (with_one, _), (without, _) = path.invert(one, one, t), path.invert(torch.zeros_like(one), one, t)
    return (with_one - without).square()
