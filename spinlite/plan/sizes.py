"""What a preset keeps in memory for a whole phase."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What stays in memory for a whole phase, in bytes unless noted."""

    width: int  # px
    height: int
    frames: int  # of a clip, at the most; 0: pictures alone
    weights: int  # of the network
    targets: int  # of the network's layers with a LoRA, which are kept while it is merged
    adapters: int  # both LoRA slots, with the opponent's in the precision that it computes in
    cast: int  # the policy's in that precision, where it is another; it is there while the policy is active
    learnt: int  # numbers in the policy's LoRA
    states: int  # of the optimizer
    latent: int  # one, in fp32
    cond: int  # of one sample


def state_bytes(optimizer: str, numbers: int) -> int:
    """Bytes of optimizer state for a tensor. bitsandbytes: 32 bits below 4096 numbers, else 8 and a scale per 256."""
    match optimizer:
        case "adamw8bit":
            return 8 * numbers if numbers < 4096 else 2 * (numbers + 4 * math.ceil(numbers / 256))
        case "prodigy":
            return 16 * numbers
        case _:
            return 8 * numbers
