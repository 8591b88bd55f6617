"""Diffusion-KTO: real and fake each have a loss of their own, which is flat at both ends."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KTO:
    """Diffusion-KTO (Li et al. 2024, arXiv 2404.04465): real = liked, fake = disliked.

    beta  as in SPIN. Gains beyond a few 1/beta, up or down, no longer count, so the error on fakes can't run away
    fakes  "played": drawn by the opponent; "given": the rejected pictures of a folder with win and lose, as for DPO

    The paper's reference point Q, a batch mean of gains cut at 0, is always 0 here. It begins at 0 in the paper too, and this
    way the loss of a sample does not depend on the rest of its batch.
    """

    beta: float = field(default=1000.0, metadata={"gt": 0})
    fakes: Literal["played", "given"] = "played"

    opponent: ClassVar[str] = "previous"

    def loss(self, policy_real: "Tensor", policy_fake: "Tensor", opponent_real: "Tensor", opponent_fake: "Tensor") -> "Tensor":
        """(1 - sigmoid(beta gain_real)) + (1 - sigmoid(-beta gain_fake)), (B,); 1 if policy = opponent."""
        gain_real, gain_fake = opponent_real - policy_real, opponent_fake - policy_fake
        return (-self.beta * gain_real).sigmoid() + (self.beta * gain_fake).sigmoid()
