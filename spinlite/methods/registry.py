"""The methods: each one a frozen dataclass of its settings and a `loss` over denoising errors.

`loss` names the errors it needs, each (B,): {policy, opponent} x {real, fake}. What else a method says of itself:

opponent  who the opponent is in round k: "base" (snapshot 0), "previous" (snapshot k-1), "random" (one of the ladder),
          "each" (one of the ladder for each sample), or None where there is none
fakes     where fakes come from: "played" by the opponent, "given" with the data, "shuffled" (the pictures of other captions),
          or None
"""

from spinlite.methods.ddo import DDO
from spinlite.methods.dpo import DPO
from spinlite.methods.dro import DRO
from spinlite.methods.kto import KTO
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.methods.sudo import SUDO

Method = SFT | DPO | SPIN | SePPO | DRO | DDO | KTO | SUDO

METHODS: dict[str, type[Method]] = {
    "sft": SFT, "dpo": DPO, "spin": SPIN, "seppo": SePPO, "dro": DRO, "ddo": DDO, "kto": KTO, "sudo": SUDO,
}  # fmt: skip

__all__ = ["DDO", "DPO", "DRO", "KTO", "METHODS", "SFT", "SPIN", "SUDO", "Method", "SePPO"]
