"""The graphics card that a run is planned for: its memory and its speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from spinlite.memory.device import Device

GIB = 2**30
DESKTOP = 0.05  # share of a named card's memory that is left to the desktop and the driver
CONTEXT = 0.5 * GIB  # bytes of the CUDA context and its kernels: an estimate, not measured here
FRAGMENTS = 1.05  # bytes that the allocator takes per byte of tensors: an estimate, not measured here
PYTHON = 0.6 * GIB  # bytes of a process on the CPU with torch, diffusers and transformers loaded


@dataclass(frozen=True)
class Card:
    """A device to plan for. `operations` and `bytes` are what it sustains per second."""

    name: str
    kind: str  # "cuda" or "cpu"
    memory: float  # bytes that the run may use
    precision: str
    operations: float
    bytes: float
    start: float  # seconds that the smallest operation takes
    measured: bool  # the speed was measured on this computer; else it is an estimate

    def needs(self, tensors: int) -> int:
        """Bytes of the card's memory that so many bytes of tensors need."""
        return round(tensors * FRAGMENTS + (CONTEXT if self.kind == "cuda" else PYTHON))


# (up to so many GB, a typical card, 10^12 operations per second in bf16 summed in fp32, 10^9 bytes per second); maker's figures
TYPICAL = [(10, "RTX 4060", 30, 272), (13, "RTX 3060", 25, 360), (18, "RTX 4060 Ti", 44, 288), (28, "RTX 3090", 71, 936),
           (1e9, "RTX 5090", 210, 1792)]  # fmt: skip
SUSTAINED = (0.5, 0.75)  # share of the maker's figures that is reached: a rule of thumb


def typical_card(gb: float) -> Card:
    """A typical card with so many GB (2^30 bytes, as cards are sold). Its speed is an estimate."""
    *_, operations, bytes_ = next(row for row in TYPICAL if gb <= row[0])
    speed = (operations * 1e12 * SUSTAINED[0], bytes_ * 1e9 * SUSTAINED[1])
    return Card(f"{gb:g} GB card", "cuda", gb * GIB * (1 - DESKTOP), "bf16", *speed, 1e-5, False)


def measure_card(where: Device, most: float | None = None) -> Card:
    """This computer's device, with its free memory, timed for half a second. `most` limits the memory, in GB."""
    device = where.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        name, memory = torch.cuda.get_device_name(device), float(free) + CONTEXT  # this process has its own already
    else:
        name, memory = f"CPU, {torch.get_num_threads()} threads", float(psutil.virtual_memory().available)
    side = 4096 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=where.dtype)
    big = torch.empty(2**26 if device.type == "cuda" else 2**23, device=device, dtype=torch.uint8)
    small = torch.zeros(8, device=device)
    operations = 2 * side**3 / _seconds(lambda: a @ a, device)
    bytes_ = 2 * big.numel() / _seconds(big.clone, device)
    start = _seconds(lambda: small + small, device)
    kind = "cuda" if device.type == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.empty_cache()
    memory = min(memory, typical_card(most).memory) if most else memory
    return Card(name, kind, memory, where.levers.precision, operations, bytes_, start, True)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds per call, measured for a sixth of a second after a warm-up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.16:
        for _ in range(10):
            call()
        wait()
        count += 10
    return (time.perf_counter() - start) / count
