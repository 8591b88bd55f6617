"""How much clips move. Self-play can win by telling real from fake by motion alone, and losses of pairs reward still clips
(DenseDPO, arXiv 2506.03517), so it is watched.

The motion of a clip is the mean squared difference of its neighbouring latent frames, x (C, F, ...): mean of
(x[:, f + 1] - x[:, f])^2. It is quadratic: a clip that moves half as far has about a quarter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from spinlite.training.heldout import has_grown

WEAK = 0.25  # of the real clips' motion: a warning
STILL = 0.01  # of it: frames differ by a tenth as much, as in a still picture after compression. Motion alone tells them apart
LOST = 0.5  # of the motion at the start: pairwise training that kept its motion lost 5 % (DenseDPO's dynamic degree, 84 to 80)


def motions(latents: Sequence[Tensor]) -> Tensor:
    """The motion of each clip among latents, (C, F, H, W) with F > 1; others are passed over."""
    clips = [x.double() for x in latents if x.ndim == 4 and x.shape[1] > 1]
    return torch.stack([x.diff(dim=1).square().mean() for x in clips]) if clips else torch.empty(0, dtype=torch.float64)


def share(latents: Sequence[Tensor], real: Sequence[Tensor]) -> float | None:
    """How much clips move, as a share of how much the real ones do; None if no real clip moves."""
    found, wanted = motions(latents), motions(real)
    return (found.mean() / wanted.mean()).item() if len(found) and len(wanted) and wanted.mean() > 0 else None


def has_stopped(real: Sequence[Tensor], start: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether samples have lost their motion: they move less than LOST x as much as at the start and as the real clips do, and
    chance does not explain it (a paired t-test). `start` and `now` are drawn for the same captions from the same noise.
    """
    wanted, before, after = motions(real), motions(start), motions(now)
    if len(after) < 2 or after.mean() >= LOST * min(before.mean(), wanted.mean()):
        return False
    return has_grown(after, before)
