"""The kinds that settings choose from. Apart from the formulas, so that settings are read without torch."""

from typing import Literal

Gate = Literal["sign", "indicator", "sft", "none"]  # `losses.gate`
Times = Literal["uniform", "logit-normal"]  # `times.TimeMap`
Weight = Literal["constant", "min-snr", "transition"]  # `weights.weigh`
