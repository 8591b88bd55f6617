"""The methods: each one a frozen dataclass of its settings and a `loss` over denoising errors.

`loss` names the errors it needs, each (B,): {policy, opponent} x {real, fake}. What else a method says of itself:

opponent  who the opponent is in round k: "base" (snapshot 0), "previous" (snapshot k-1), "random" (one of 0..k-1),
          or None where there is none
fakes     where fakes come from: "played" by the opponent, "given" with the data, or None
"""

from spinlite.methods.dpo import DPO
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN

Method = SFT | DPO | SPIN | SePPO

METHODS: dict[str, type[Method]] = {"sft": SFT, "dpo": DPO, "spin": SPIN, "seppo": SePPO}

__all__ = ["DPO", "METHODS", "SFT", "SPIN", "Method", "SePPO"]
