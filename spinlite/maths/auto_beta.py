"""The automatic beta (`learn.aim`): beta follows the size of the margins, so that a typical pair keeps a chosen weight.

A preference loss weights a pair's gradient by sigmoid(-beta margin). With beta = log((1 - aim) / aim) / m, a pair of margin m
has the weight `aim`. (SimpleTuner's automatic beta is the same, with the running mean of |margin| as m.)

If m could grow without limit, beta would fall with it and the push on a pair would never end. If m could shrink without limit,
beta would magnify rounding and chance. So m is kept between LEAST and MOST times the opponent's error. Above MOST beta stands
still: larger margins are won pairs, and their weight falls to 0.

Other units of the error (another prediction type, timestep weights, sums instead of means) scale m and the error alike, and
beta inversely, so the run stays the same. The running mean counts its memory in pairs, not in updates, so it does not depend
on the batch size: two updates of 8 see what one of 16 sees.
"""

import math

from torch import Tensor

MEMORY = 256.0  # pairs
LEAST, MOST = 0.001, 0.02  # shares of the opponent's error on real; with aim 0.2, MOST is beta 5000 at an error of 0.014


def running_mean(before: float | None, values: Tensor) -> float:
    """The running mean `before` (None: there is none yet), updated by samples (B,). It remembers about MEMORY samples."""
    mean = values.double().mean().item()
    if before is None:
        return mean
    kept = math.exp(-len(values) / MEMORY)
    return kept * before + (1 - kept) * mean


def automatic_beta(margin: float, error: float, aim: float) -> float:
    """beta for the running means of |margin| and of the opponent's error, so that a typical pair has the weight `aim` < 1/2."""
    return math.log((1 - aim) / aim) / min(max(margin, LEAST * error), MOST * error)
