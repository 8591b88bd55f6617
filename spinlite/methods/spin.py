"""SPIN-Diffusion: self-play against the previous snapshot."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from spinlite.maths.losses import bounded, preference


@dataclass(frozen=True)
class SPIN:
    """SPIN-Diffusion (Yuan et al. 2024, arXiv 2402.10210), approximate objective: beat the previous snapshot's samples.

    beta    the leash: a margin of 1/beta is worth a logit of 1 (mean squared errors, no factor 1/2). Larger: a round
            moves less far
    bound   a fake's error counts up to (1 + bound) x the opponent's
    anchor  weight of a plain denoising term next to the preference, whose own weight on real is sigmoid(-logit) <= 1

    With bound = inf and anchor = 0 the loss is the paper's own.
    """

    beta: float = field(default=5000.0, metadata={"gt": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})
    anchor: float = field(default=0.01, metadata={"ge": 0})

    opponent: ClassVar[str] = "previous"
    fakes: ClassVar[str] = "played"

    def loss(self, policy_real: Tensor, policy_fake: Tensor, opponent_real: Tensor, opponent_fake: Tensor) -> Tensor:
        """-log sigmoid(beta * margin) - anchor * beta * gain_real, (B,); log 2 where policy = opponent.

        The anchor is written on the gain, not on the error: the same gradient, and log 2 stays log 2.
        """
        gain_real = opponent_real - policy_real
        gain_fake = bounded(opponent_fake - policy_fake, opponent_fake, self.bound)
        return preference(gain_real, gain_fake, self.beta) - self.anchor * self.beta * gain_real
