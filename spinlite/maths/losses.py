"""Losses over denoising errors. An error is a number per sample, (B,), in fp32, and lower is better.

gain = opponent error - policy error (positive: the policy denoises this sample better than the opponent);
margin = gain on real - gain on fake.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Literal["sign", "indicator", "sft", "none"]

TIE = 1e-5  # share of the opponent's error below which a gain is rounding, not a difference


def error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, in fp32: (B, ...) -> (B,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def preference(gain_real: Tensor, gain_fake: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * margin), (B,): log 2 where the policy is its opponent.

    beta multiplies the plain difference of *mean* squared errors, without Diffusion-DPO's factor 1/2: beta here is
    half the `beta_dpo` of the Diffusion-DPO authors' code (Wallace et al. 2023, eq. 14), and equals the one in diffusers.
    """
    return F.softplus(-beta * (gain_real - gain_fake))


def bounded(gain_fake: Tensor, opponent_fake: Tensor, bound: float) -> Tensor:
    """The gain on fakes, (B,), counted no lower than -bound x the opponent's error on the same fake.

    A preference is also won by denoising fakes ever worse: the way such training collapses. Past the bound that pays
    nothing more (the slope is zero). It acts where beta is small against the errors; a large beta ends the push sooner.
    An infinite bound is none.
    """
    return gain_fake if bound == math.inf else torch.maximum(gain_fake, -bound * opponent_fake)


def hinge(gain_real: Tensor, gain_fake: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta * margin), (B,): 1 where the policy is its opponent, nothing more to win past a margin of 1/beta."""
    return F.relu(1 - beta * (gain_real - gain_fake))


def gate(gain_real: Tensor, opponent_real: Tensor, kind: Gate) -> Tensor:
    """SePPO's s, (B,), detached: what the fake is worth where the policy has (not) got better on the real sample.

    |             | policy better | tie | policy worse |
    |-------------|---------------|-----|--------------|
    | "sign"      | +1            | 0   | -1           |  Zhang et al. 2024 (v1): the fake turns into a second real
    | "indicator" | +1            | 0   | 0            |  the paper's 1(x > 0): the fake is left out, the sigmoid stays
    | "sft"       | +1            | 0   | 0            |  v2 switches to SFT there: the caller drops the sigmoid too
    | "none"      | +1            | +1  | +1           |  plain preference

    A tie is |gain| <= TIE x the opponent's error: when the policy *is* its opponent, which one rounding favours must
    not decide. There the fake is left out (s = 0).
    """
    if kind == "none":
        return torch.ones_like(gain_real)
    s = torch.where(gain_real.abs() <= TIE * opponent_real, torch.zeros_like(gain_real), gain_real.sign())
    return (s if kind == "sign" else s.clamp_min(0)).detach()
