"""beta, found instead of set: from how large margins are, so that a typical pair keeps a set weight, and from how large
errors are, so that a round still ends somewhere.

A preference's gradient counts a pair by sigmoid(-beta margin). With beta = log((1 - aim) / aim) / m, a pair whose margin is m
counts `aim` (SimpleTuner's automatic beta is the same, with the running mean of |margin| for m). Left to itself such a beta
follows the margins down and the push never ends. So m is held between LEAST and MOST of the opponent's error: below, rounding
and chance are not magnified; above, beta stands still, further margins are won pairs, and their weight falls to 0.

Errors in other units (another prediction type, weights of times, sums for means) scale m and error alike, and beta
inversely: the logits, and with them the run, stay the same. |margin| is averaged over pairs, not over batches, and with a
memory counted in pairs: its mean does not depend on the batch size, and two updates of 8 see what one of 16 sees.
"""

import math

from torch import Tensor

MEMORY = 256.0  # pairs
LEAST, MOST = 0.001, 0.02  # of the opponent's error on real: MOST gives the steady trial's 5000 at its error of 0.014


def running_mean(before: float | None, values: Tensor) -> float:
    """A running mean over samples (B,) with a memory of MEMORY of them."""
    mean = values.double().mean().item()
    if before is None:
        return mean
    kept = math.exp(-len(values) / MEMORY)
    return kept * before + (1 - kept) * mean


def automatic_beta(margin: float, error: float, aim: float) -> float:
    """beta for a typical |margin| and a typical opponent's error, so that the typical pair counts `aim` < 1/2."""
    return math.log((1 - aim) / aim) / min(max(margin, LEAST * error), MOST * error)
