"""SFT (supervised fine-tuning): ordinary LoRA training. Self-play has to beat it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SFT:
    """Plain denoising of the user's own pictures (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    opponent: ClassVar[None] = None
    fakes: ClassVar[None] = None

    def loss(self, policy_real: "Tensor") -> "Tensor":
        """The error itself, (B,)."""
        return policy_real
