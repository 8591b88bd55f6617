"""SUDO: the fake is another real picture, so nothing is sampled. It shows whether the opponent matters at all."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from spinlite.maths.losses import bounded, preference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SUDO:
    """SUDO (2025, arXiv 2504.14534): Diffusion-DPO against the picture of another caption, plus plain denoising.

    beta   as in SPIN; the authors' 5000 includes the factor 1/2
    bound  as in SPIN; the paper has none
    mse    weight of the plain denoising error, the preference having 1; the paper weights both alike
    """

    beta: float = field(default=2500.0, metadata={"gt": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})
    mse: float = field(default=1.0, metadata={"ge": 0})

    opponent: ClassVar[str] = "base"
    fakes: ClassVar[str] = "shuffled"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """-log sigmoid(beta * margin) - mse * gain_real, (B,); log 2 if policy = opponent. Twice the paper's loss."""
        gain_real = opponent_real - policy_real
        gain_fake = bounded(opponent_fake - policy_fake, opponent_fake, self.bound)
        return preference(gain_real, gain_fake, self.beta) - self.mse * gain_real
