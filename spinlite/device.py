"""Where and in which precision a run computes: chosen once, with the reason."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it warns of 4-bit kernels that are not needed


@dataclass(frozen=True)
class Device:
    """The device, the dtype of the frozen base, and why. LoRA weights and losses are fp32 everywhere."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return self.why

    def optimizer(self, kind: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """"adamw8bit" (bitsandbytes, states of 8 bits; small tensors stay in 32) or "adamw"."""
        if kind == "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(list(parameters), lr=lr, weight_decay=0.0)


def choose() -> Device:
    """The best device of this computer."""
    from accelerate import PartialState

    device = PartialState().device or torch.device("cpu")
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Device(device, torch.bfloat16, f"{name}, bf16 (sm_{major}{minor} has it)")
        return Device(device, torch.float16, f"{name}, fp16 (sm_{major}{minor} has no bf16)")
    if device.type == "cpu":
        return Device(device, torch.float32, f"CPU with {torch.get_num_threads()} threads, fp32 (no GPU found)")
    return Device(device, torch.float32, f"{device.type}, fp32")
