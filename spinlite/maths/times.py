"""How training times are spread between 0 (clean) and 1 (noise). u, t: (B,)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spinlite.maths.kinds import Times


@dataclass(frozen=True)
class TimeMap:
    """An increasing map of uniform numbers u in [0, 1] to times t in [0, 1], and its inverse.

    | kind           | x                                                                                       |
    |----------------|-----------------------------------------------------------------------------------------|
    | "uniform"      | u                                                                                       |
    | "logit-normal" | sigmoid(z), z the standard normal quantile of u (Esser et al. 2024, 2403.03206, eq. 19)  |

    Then t = shift x / (1 + (shift - 1) x) (the same paper, eq. 23): a shift above 1 moves times towards noise.
    """

    kind: Times = "uniform"
    shift: float = 1.0

    def times(self, u: Tensor) -> Tensor:
        """Uniform numbers -> times."""
        x = u.double() if self.kind == "uniform" else torch.special.ndtri(u.double()).sigmoid()
        return (self.shift * x / (1 + (self.shift - 1) * x)).to(u.dtype)

    def share(self, t: Tensor) -> Tensor:
        """Times -> the share of all draws that lie below them: `times` gives t again."""
        x = t.double() / (self.shift - (self.shift - 1) * t.double())
        return (x if self.kind == "uniform" else torch.special.ndtr(x.logit())).to(t.dtype)

    def within(self, u: Tensor, low: float, high: float) -> Tensor:
        """Uniform numbers -> times from low to high, spread there as they are without these limits."""
        if self == TimeMap():
            return low + (high - low) * u
        first, last = self.share(torch.tensor([low, high], dtype=torch.float64)).tolist()
        return self.times(first + (last - first) * u.double()).clamp(low, high).to(u.dtype)
