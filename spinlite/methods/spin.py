"""SPIN-Diffusion: self-play against the previous snapshot."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from spinlite.maths.losses import bounded, preference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SPIN:
    """SPIN-Diffusion (Yuan et al. 2024, arXiv 2402.10210), approximate objective: real pictures against the opponent's own.

    beta    the leash: the larger, the sooner self-play stops pushing in a round; the anchor goes on. A margin of 1/beta gives a
            logit of 1 (mean squared errors, without DPO's factor 1/2)
    bound   the error on a fake counts up to (1 + bound) x the opponent's: there is no reward for making it even worse
    anchor  weight of plain denoising (SFT) beside the preference, which alone melts shapes after some rounds (docs/study.md).
            The preference's own weight on real is sigmoid(-logit) <= 1

    With bound = inf and anchor = 0 the loss is the paper's.
    """

    beta: float = field(default=5000.0, metadata={"gt": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})
    anchor: float = field(default=1.0, metadata={"ge": 0})

    opponent: ClassVar[str] = "previous"
    fakes: ClassVar[str] = "played"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """-log sigmoid(beta * margin) - anchor * beta * gain_real, (B,); log 2 if policy = opponent.

        The anchor uses the gain instead of the error: the gradient is the same, and the loss still begins at log 2.
        """
        gain_real = opponent_real - policy_real
        gain_fake = bounded(opponent_fake - policy_fake, opponent_fake, self.bound)
        return preference(gain_real, gain_fake, self.beta) - self.anchor * self.beta * gain_real
