"""Diffusion-DRO's hinge: a pair that is won by a set margin is left alone."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from spinlite.maths.losses import hinge


@dataclass(frozen=True)
class DRO:
    """The hinge of Diffusion-DRO (2025, arXiv 2510.18353, eq. 15), in units of its margin: max(0, 1 - beta * margin).

    beta  one over the margin at which a pair is won; the paper's 0.001 is 1000

    The paper's fakes are points of the policy's own path, renewed at every update; here the opponent is the previous
    snapshot for a whole round, since a copy that is the policy itself gives the push no gradient.
    """

    beta: float = field(default=1000.0, metadata={"gt": 0})

    opponent: ClassVar[str] = "previous"
    fakes: ClassVar[str] = "played"

    def loss(self, policy_real: Tensor, policy_fake: Tensor, opponent_real: Tensor, opponent_fake: Tensor) -> Tensor:
        """(B,); 1 where policy = opponent."""
        return hinge(opponent_real - policy_real, opponent_fake - policy_fake, self.beta)
