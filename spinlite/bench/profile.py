"""Where the time of an update goes: torch's profiler on one update each of SFT, DPO and SPIN; and what the LoRA costs."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from spinlite.bench.turns import Call
from spinlite.bench.ways import DPO_WAY, FAST, SFT_WAY
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.training.batches import Batch

KINDS: dict[str, tuple[str, ...]] = {  # what an operation's or kernel's name says about it; the first that fits counts
    "attention": ("scaled_dot_product", "flash", "fmha", "efficient_attention", "softmax"),
    "convolutions": ("conv", "winograd", "im2col", "col2im"),
    "norms": ("group_norm", "layer_norm", "groupnorm", "layernorm", "rowwisemoments"),
    "matrix products": ("mm", "gemm", "cutlass", "matmul", "linear", "dot"),
    "optimizer and clipping": ("optimizer", "adam", "blockwise", "_foreach", "multi_tensor", "linalg_vector_norm"),
    "copies, casts, cat": ("copy", "cat", "clone", "fill", "zero_", "memcpy", "memset"),
    "other arithmetic": ("",),
}
WAYS = (SFT_WAY, DPO_WAY, FAST)


@dataclass(frozen=True)
class Profile:
    """One update. On a card, 1 less the sum of the shares is the time in which the card waits for the host."""

    name: str
    seconds: float
    shares: dict[str, float]  # of the time, by kind of operation; on a CPU they sum to 1
    launches: int  # operations on a CPU, kernels on a card


@dataclass(frozen=True)
class Profiles:
    updates: list[Profile] = field(default_factory=list)
    lora: dict[str, float] = field(default_factory=dict)  # a forward pass by name, relative to the base's


def profile(calls: Iterable[Call], device: torch.device) -> list[Profile]:
    """A profile of each of `WAYS`. They have run before, so nothing is done for the first time."""
    by_name = {call.name: call for call in calls}
    found = []
    for name in WAYS:
        call = by_name[name]
        with call.around():
            found.append(_profile(name, call.run, device))
    return found


def _profile(name: str, run: Callable[[], object], device: torch.device) -> Profile:
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_card
    seconds = _seconds(run, device)
    with torch_profile(activities=activities) as traced:
        run()
        _wait(device)
    kinds, launches = dict.fromkeys(KINDS, 0.0), 0
    for event in traced.key_averages():
        taken, count = _taken(event, on_card)
        kinds[kind_of(event.key)] += taken / 1e6
        launches += count
    whole = seconds if on_card else sum(kinds.values())  # tracing slows a CPU down
    return Profile(name, seconds, {kind: taken / whole for kind, taken in kinds.items()}, launches)


def _taken(event: Any, on_card: bool) -> tuple[float, int]:
    """(microseconds, how often) of an operation itself, without those that it calls: on a card its kernels alone."""
    if on_card:
        return (event.self_device_time_total, event.count) if str(event.device_type).endswith("CUDA") else (0.0, 0)
    return event.self_cpu_time_total, event.count * event.key.startswith("aten::")


def kind_of(name: str) -> str:
    """The kind of an operation or kernel, one of KINDS."""
    return next(kind for kind, words in KINDS.items() if any(word in name.lower() for word in words))


def lora_cost(family: Family, slots: Slots, batch: Batch, turns: int, device: torch.device) -> dict[str, float]:
    """How long forward passes take relative to the base's: medians over turns, in which all stand side by side."""

    def forward(who: Any, learns: bool) -> None:
        with slots.use(who), torch.set_grad_enabled(learns):
            family.denoise(batch.real, batch.t, batch.cond)

    ways: dict[str, Callable[[], None]] = {
        "base": lambda: forward("base", False), "opponent": lambda: forward("opponent", False),
        "policy": lambda: forward("policy", False), "policy, with a graph": lambda: forward("policy", True),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            seconds = _seconds(run, device)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(a / b for a, b in zip(times[name], times["base"], strict=True)) for name in ways}


def as_markdown(found: Profiles) -> list[str]:
    """The table for docs/bench.md."""
    lines = ["| | " + " | ".join(p.name for p in found.updates) + " |", "|---" * (len(found.updates) + 1) + "|"]
    for kind in KINDS:
        lines.append(_line(kind, (f"{p.shares[kind]:.0%}" for p in found.updates)))
    lines.append(_line("waiting for the host", (f"{max(0.0, 1 - sum(p.shares.values())):.0%}" for p in found.updates)))
    lines.append(_line("launches", (str(p.launches) for p in found.updates)))
    lines.append(_line("an update, ms", (f"{1e3 * p.seconds:.0f}" for p in found.updates)))
    words = ", ".join(f"{name} {share:.2f}" for name, share in found.lora.items())
    return [*lines, "", f"A forward pass, the base's = 1: {words}."]


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call; on a CPU those of this process alone."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait(device)
    start = clock()
    run()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
