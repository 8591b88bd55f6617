"""Losses over denoising errors. An error is one number for each sample, (B,), in fp32; lower is better.

gain = opponent error - policy error (positive: the policy denoises this sample better than the opponent);
margin = gain on real - gain on fake.
"""

import math
from typing import TYPE_CHECKING

from spinlite.maths.kinds import Gate

if TYPE_CHECKING:  # methods are read with the settings, before a command needs torch
    from torch import Tensor

TIE = 1e-5  # share of the opponent's error; a smaller gain is only rounding


def error(prediction: "Tensor", target: "Tensor", mask: "Tensor | None" = None) -> "Tensor":
    """Mean squared error of each sample, in fp32: (B, ...) -> (B,).

    With a mask, (B, 1, ...) in [0, 1], it is the weighted mean sum(mask x squared error) / sum(mask) over the sample. So an
    error where the mask is 1 counts alike in large and small masks, and masked errors compare with whole ones.
    """
    squared = (prediction.float() - target.float()).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    weight = mask.float().expand_as(squared).flatten(1)
    return (weight * squared.flatten(1)).sum(1) / weight.sum(1)


def preference(gain_real: "Tensor", gain_fake: "Tensor", beta: float) -> "Tensor":
    """-log sigmoid(beta * margin), (B,). It is log 2 while the policy equals its opponent.

    beta multiplies the difference of *mean* squared errors, without Diffusion-DPO's factor 1/2. So it is half the `beta_dpo` of
    the Diffusion-DPO authors' code (Wallace et al. 2023, eq. 14), and the same as in diffusers' code.
    """
    return softplus(-beta * (gain_real - gain_fake))


def softplus(x: "Tensor") -> "Tensor":
    """log(1 + exp(x)), each."""
    from torch.nn import functional

    return functional.softplus(x)


def bounded(gain_fake: "Tensor", opponent_fake: "Tensor", bound: float) -> "Tensor":
    """The gain on fakes, (B,), but not below -bound x the opponent's error on the same fake.

    A preference can also be won by denoising fakes ever worse, and this is how such training collapses. Past the bound this
    is not rewarded any more: the slope is zero. With a large beta the loss ends the push earlier by itself; the bound matters
    when beta is small against the errors. bound = inf switches it off.
    """
    return gain_fake if bound == math.inf else gain_fake.maximum(-bound * opponent_fake)


def hinge(gain_real: "Tensor", gain_fake: "Tensor", beta: float) -> "Tensor":
    """max(0, 1 - beta * margin), (B,): 1 while the policy equals its opponent, 0 from a margin of 1/beta on."""
    return (1 - beta * (gain_real - gain_fake)).relu()


def gate(gain_real: "Tensor", opponent_real: "Tensor", kind: Gate) -> "Tensor":
    """SePPO's s, (B,), detached: the factor on the gain on the fake. It depends on how the policy does on the real sample:

    |             | policy better | tie | policy worse |
    |-------------|---------------|-----|--------------|
    | "sign"      | +1            | 0   | -1           |  Zhang et al. 2024 (v1): the fake is learnt like a real one
    | "indicator" | +1            | 0   | 0            |  the paper's 1(x > 0): the fake is left out, the sigmoid stays
    | "sft"       | +1            | 0   | 0            |  v2: plain SFT there, so the caller drops the sigmoid too
    | "none"      | +1            | +1  | +1           |  plain preference

    A tie is |gain| <= TIE x the opponent's error. Without it, rounding would decide for each sample while the policy equals its
    opponent. At a tie the fake is left out (s = 0).
    """
    if kind == "none":
        return gain_real.new_ones(gain_real.shape)
    s = gain_real.sign().masked_fill(gain_real.abs() <= TIE * opponent_real, 0)
    return (s if kind == "sign" else s.clamp_min(0)).detach()
