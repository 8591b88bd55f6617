"""DDO: real and fake each have a loss of their own, as in a GAN's discriminator."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from spinlite.maths.losses import bounded, softplus

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DDO:
    """Direct Discriminative Optimization (2025, arXiv 2503.01103), with gains in place of log density ratios.

    beta, bound  as in SPIN
    alpha        weight of the fakes. In the paper, with true log ratios and alpha = beta = 1, the optimum is the distribution
                 of the real pictures
    """

    beta: float = field(default=5000.0, metadata={"gt": 0})
    alpha: float = field(default=1.0, metadata={"ge": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})

    opponent: ClassVar[str] = "previous"
    fakes: ClassVar[str] = "played"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """-log sigmoid(beta gain_real) - alpha log sigmoid(-beta gain_fake), (B,); (1 + alpha) log 2 if policy = opponent."""
        gain_fake = bounded(opponent_fake - policy_fake, opponent_fake, self.bound)
        return softplus(-self.beta * (opponent_real - policy_real)) + self.alpha * softplus(self.beta * gain_fake)
