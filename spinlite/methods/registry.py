"""The table of methods. Each is a frozen dataclass with its settings and a `loss` over denoising errors.

The parameters of `loss` name the errors that it needs, {policy, opponent} x {real, fake}, (B,) each. The class also says:

opponent  the opponent of round k: "base" (snapshot 0), "previous" (snapshot k-1), "random" (one of the ladder for the round),
          "each" (one of the ladder for each picture), or None
fakes     where fakes come from: "played" (the opponent makes them), "given" (with the data), "shuffled" (real pictures of other
          captions), or None
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
