"""Diffusion-DRO's hinge loss: a pair that is won by a set margin no longer counts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from spinlite.maths.losses import hinge

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DRO:
    """The hinge of Diffusion-DRO (2025, arXiv 2510.18353, eq. 15), divided by its margin: max(0, 1 - beta * margin).

    beta  1 / the margin at which a pair is won; the paper's 0.001 is beta = 1000

    In the paper fakes are points of the policy's own sampling path, made anew at every update. Here the previous snapshot
    makes them once a round, since an opponent that is always the policy itself would give the fakes no gradient.
    """

    beta: float = field(default=1000.0, metadata={"gt": 0})

    opponent: ClassVar[str] = "previous"
    fakes: ClassVar[str] = "played"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """max(0, 1 - beta * margin), (B,); 1 if policy = opponent."""
        return hinge(opponent_real - policy_real, opponent_fake - policy_fake, self.beta)
