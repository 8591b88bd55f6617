"""SePPO: self-play against a random earlier snapshot; a gate decides for each fake whether to push away from it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from spinlite.maths.kinds import Gate
from spinlite.maths.losses import bounded, gate, preference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SePPO:
    """SePPO (Zhang et al. 2024, arXiv 2410.05255): -log sigmoid(beta (gain_real - s gain_fake)), s from the gate.

    reference  the opponent: "random" (the paper's choice: one earlier snapshot a round), "each" (one for each picture),
               "previous" (the paper's "latest") or "base"
    gate       "sign" (v1), "indicator", "sft" (v2, SSPO: plain SFT where s = 0), "none" (s = 1: with "previous" it is SPIN)
    beta, bound, anchor  as in SPIN; the bound acts where s > 0, since only then the loss pushes away from the fake
    """

    beta: float = field(default=5000.0, metadata={"gt": 0})
    bound: float = field(default=0.5, metadata={"gt": 0})
    anchor: float = field(default=0.01, metadata={"ge": 0})
    reference: Literal["random", "each", "previous", "base"] = "random"
    gate: Gate = "sign"

    fakes: ClassVar[str] = "played"

    @property
    def opponent(self) -> str:
        """The reference: the snapshot that makes the fakes is also the one to compare with."""
        return self.reference

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """-log sigmoid(beta (gain_real - s gain_fake)) - anchor * beta * gain_real, (B,); log 2 if policy = opponent."""
        gain_real, gain_fake = opponent_real - policy_real, opponent_fake - policy_fake
        s = gate(gain_real, opponent_real, self.gate)
        worth = (s > 0) * bounded(gain_fake, opponent_fake, self.bound) + (s < 0) * -gain_fake
        paired = preference(gain_real, worth, self.beta)
        if self.gate == "sft":  # SFT, as the tangent of the pair's loss at a tie: value and slope are continuous there
            paired = paired.where(s > 0, math.log(2) - 0.5 * self.beta * gain_real)
        return paired - self.anchor * self.beta * gain_real
