"""Small real computations on the device that training would use. `probes` runs them in another process, to survive crashes:
`python -m spinlite.doctor.trials NAME...` writes a line of JSON for each.

A trial raises if its result is wrong; else it returns a few words, or facts.
"""

import importlib
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

PACKAGES = {"adamw8bit": "bitsandbytes", "nf4": "bitsandbytes", "xformers": "xformers", "torch": "torch"}


def torch_() -> dict[str, Any]:
    """What torch reports about itself and its device."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    found: dict[str, Any] = {
        "version": torch.__version__,
        "build": f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else "CPU",
        "device": str(_device()),
    }
    if not torch.cuda.is_available():
        trouble = ""
        if cuda or hip:
            try:
                torch.zeros(1, device="cuda")
            except Exception as error:
                trouble = _brief(error)
        return found | {"trouble": trouble}
    free, total = torch.cuda.mem_get_info()
    return found | {
        "name": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "archs": torch.cuda.get_arch_list(),
        "total": total // 2**20,
        "free": free // 2**20,
    }


def half(dtype_name: str) -> str:
    """Compare a convolution and a linear layer, forward and backward, with fp32."""
    import torch
    from torch import nn

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype_name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 64, 64))
    x = torch.randn(2, 4, 8, 8)
    exact = _gradient(net, x)
    rounded = _gradient(net.to(_device(), dtype), x.to(_device(), dtype))
    _close(rounded, exact, 0.05)
    native = _device().type != "cuda" or dtype_name == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "forward and backward agree with fp32" + ("" if native else ", but emulated: slow")


def sdpa() -> str:
    """Compare torch's attention, forward and backward, with the formula."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q = torch.randn(2, 4, 64, 40, generator=torch.Generator().manual_seed(0)).to(_device())

    def formula(q: Any) -> Any:
        return (q @ q.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ q

    _close(_gradient(lambda q: scaled_dot_product_attention(q, q, q), q), _gradient(formula, q), 0.01)
    return "forward and backward agree with the formula"


def xformers() -> str:
    """Compare xformers' attention, forward and backward, with torch's, in the precision that training uses."""
    attention = importlib.import_module("xformers.ops").memory_efficient_attention  # an extra: type checkers may not find it
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.float16 if _device().type == "cuda" else torch.float32
    q = torch.randn(2, 64, 4, 40, generator=torch.Generator().manual_seed(0)).to(_device(), dtype)
    turned = q.transpose(1, 2)
    gradient = _gradient(lambda q: attention(q, q, q), q)
    _close(gradient, _gradient(lambda q: scaled_dot_product_attention(q, q, q), turned).transpose(1, 2), 0.05)
    return "forward and backward agree with torch's"


def adamw8bit() -> str:
    """Check that bitsandbytes' 8-bit AdamW has 8-bit states and lowers a loss."""
    import bitsandbytes
    import torch

    weight = torch.nn.Parameter(torch.ones(128, 128, device=_device()))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(5):
        loss = weight.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if optimizer.state[weight]["state1"].dtype != torch.uint8:
        raise RuntimeError("its states are not 8 bits wide")
    if not losses == sorted(losses, reverse=True) or losses[-1] > 0.95:
        raise RuntimeError(f"it does not lower a loss: {losses}")
    return "5 steps lower a loss"


def nf4() -> str:
    """Compare a layer in bitsandbytes' NF4, output and gradient, with its own weight and with the exact one."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    exact = torch.nn.Linear(256, 256, bias=False)
    layer = Linear4bit(256, 256, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict(exact.state_dict())
    layer = layer.to(_device())
    weight: Any = layer.weight
    held = dequantize_4bit(weight.data, weight.quant_state).float()
    _close(held, exact.weight, 0.15)
    x = torch.randn(64, 256).to(_device())
    _close(_gradient(layer, x), _gradient(lambda x: x @ held.T, x), 0.01)
    return "forward and backward through 4-bit weights"


def step() -> str:
    """Run one SPIN step of the demo model with a LoRA: the loss must be log 2, and the policy must get a gradient."""
    import torch

    from spinlite.config.settings import Model
    from spinlite.families.load import load_family
    from spinlite.lora.adapters import Slots
    from spinlite.maths.draws import gaussian
    from spinlite.memory.device import choose_device
    from spinlite.methods.spin import SPIN
    from spinlite.training.batches import Batch
    from spinlite.training.step import step as learn

    where = choose_device()
    model = load_family(Model(base="demo"), where)
    slots = Slots(model.net, model.lora_targets["linear"], 4, 4, seed=0)
    real, fake, eps = (gaussian((2, *model.latent_shape), "doctor", name).to(where.device) for name in ("real", "fake", "eps"))
    t = model.path.times(torch.tensor([0.3, 0.6])).to(where.device)
    cond = {name: value.to(where.device) for name, value in model.encode_captions(["a cat", ""]).items()}
    loss = learn(model, slots, SPIN(), Batch(real, fake, eps, t, cond), one_graph=True)[0].item()
    norm = torch.stack([p.grad.norm() for p in slots.parameters() if p.grad is not None]).norm().item()
    if abs(loss - math.log(2)) > 1e-3 or not 0 < norm < float("inf"):
        raise RuntimeError(f"the loss is {loss:.4f} but must be log 2; the norm of the gradient is {norm:.2e}")
    return f"one SPIN step of the demo model on {where.device}: its loss is log 2, as it must be"


TRIALS: dict[str, Callable[[], Any]] = {
    "torch": torch_, "bf16": lambda: half("bf16"), "fp16": lambda: half("fp16"), "sdpa": sdpa, "xformers": xformers,
    "adamw8bit": adamw8bit, "nf4": nf4, "step": step,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Run the trials in order. Prints for each: "trial", "seconds", and "found" (facts), "said", "missing" or "error"."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x8003)  # a crash then ends the process without a dialogue
    sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    warnings.simplefilter("ignore")
    for name in names:
        start = time.monotonic()
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            outcome = {"missing": True}
        else:
            try:
                found = TRIALS[name]()
                outcome = {"found": found} if isinstance(found, dict) else {"said": found}
            except Exception as error:  # a broken library may raise anything
                outcome = {"error": _brief(error)}
        print(json.dumps({"trial": name, "seconds": round(time.monotonic() - start, 2)} | outcome), flush=True)


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _gradient(net: Callable[[Any], Any], x: Any) -> Any:
    """The gradient at the input of `net`. The slope at its output depends on the output, so that a wrong output shows too."""
    x = x.detach().clone().requires_grad_()
    out = net(x)
    (out.float() * (1 + out.detach().float())).sum().backward()
    return x.grad.float().cpu()


def _close(result: Any, expected: Any, tolerance: float) -> None:
    """Raise if the relative distance is above the tolerance, or not a number."""
    result, expected = result.detach().float().cpu(), expected.detach().float().cpu()
    distance = ((result - expected).norm() / expected.norm()).item()
    if not distance <= tolerance:
        raise RuntimeError(f"its result is wrong: {distance:.0%} off")


def _brief(error: BaseException) -> str:
    """The type and first words of an error."""
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main(sys.argv[1:])
