"""Diffusion-DPO: learn from given pairs of a preferred and a rejected picture."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from spinlite.maths.losses import bounded, preference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPO:
    """Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, eq. 14): real = the preferred picture, fake = the rejected.

    The opponent is the base model for the whole run. `beta`, `bound` and `anchor` are as in SPIN.
    """

    beta: float = field(default=2500.0, metadata={"gt": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})
    anchor: float = field(default=0.0, metadata={"ge": 0})

    opponent: ClassVar[str] = "base"
    fakes: ClassVar[str] = "given"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """-log sigmoid(beta * margin) - anchor * beta * gain_real, (B,); log 2 if policy = opponent."""
        gain_real = opponent_real - policy_real
        gain_fake = bounded(opponent_fake - policy_fake, opponent_fake, self.bound)
        return preference(gain_real, gain_fake, self.beta) - self.anchor * self.beta * gain_real
