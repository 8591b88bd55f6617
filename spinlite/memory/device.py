"""Where, in which precision and with which memory levers a run computes; every choice with its reason."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinlite.config.settings import Memory
from spinlite.errors import SpinliteError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it warns of 4-bit kernels that are not needed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Levers:
    """How a run is fitted into memory: [memory] with every choice made. But for rounding, only `quantize` changes results."""

    precision: str = "fp32"
    quantize: str = "none"
    attention: str = "auto"  # xformers where it runs
    checkpointing: bool = False
    one_graph: bool = False
    cache_opponent: bool = False
    micro_batch: int | None = None  # None: the whole batch
    play_batch: int = 16
    channels_last: bool = False
    compile: bool = False
    merge: bool = False


@dataclass(frozen=True)
class Device:
    """The device, its levers, and why. LoRA weights and losses are fp32 everywhere."""

    device: torch.device
    why: str
    levers: Levers = field(default_factory=Levers)

    def __str__(self) -> str:
        return self.why

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base and its activations."""
        return DTYPES[self.levers.precision]

    def optimizer(self, kind: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """An optimizer without weight decay; bytes it keeps a LoRA weight in brackets.

        "adamw8bit"     bitsandbytes' AdamW, states of 8 bits (2; small tensors stay in 32 bits)
        "adamw"         torch's (8)
        "schedulefree"  AdamW that averages where others let the rate fall (8; Defazio et al. 2024, arXiv 2405.15682)
        "prodigy"       AdamW that finds the rate, `lr` times it (16; Mishchenko & Defazio 2023, arXiv 2306.06101)
        """
        given = list(parameters)
        match kind:
            case "adamw":
                return torch.optim.AdamW(given, lr=lr, weight_decay=0.0)
            case "schedulefree":
                from schedulefree import AdamWScheduleFree

                return AdamWScheduleFree(given, lr=lr)
            case "prodigy":
                from prodigyopt import Prodigy

                return Prodigy(given, lr=lr, use_bias_correction=True, safeguard_warmup=True)
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(given, lr=lr, weight_decay=0.0)

    def attention(self, head_sizes: Iterable[int]) -> tuple[str, str]:
        """("xformers" or "sdpa", why) for heads of these sizes. Raises SpinliteError where a pinned one can't run."""
        sizes = sorted(set(head_sizes))
        if self.levers.attention == "sdpa":
            return "sdpa", "memory.attention"
        fails = _xformers_fails(self.device, self.dtype, sizes)
        if fails is None:
            return "xformers", f"it runs here, forward and back, with heads of {', '.join(map(str, sizes))}"
        if self.levers.attention == "xformers":
            raise SpinliteError(
                f'memory.attention = "xformers", but {fails}',
                fix="remove memory.attention: then torch's own attention is taken",
            )
        return "sdpa", fails


@contextlib.contextmanager
def training_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Schedule-free's weights, for the length of the block, are where it takes its gradients; afterwards, their average."""
    averaging: Any = optimizer if hasattr(optimizer, "train") else None
    if averaging:
        averaging.train()
    yield
    if averaging:
        averaging.eval()


@contextlib.contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within `learning`: schedule-free's weights are their average for the length of the block."""
    averaging: Any = optimizer if hasattr(optimizer, "train") else None
    if averaging:
        averaging.eval()
    yield
    if averaging:
        averaging.train()


def choose_device(memory: Memory | None = None) -> Device:
    """The best device of this computer, with the levers that [memory] pins. Raises SpinliteError for a pin that can't hold."""
    from accelerate import PartialState

    memory = memory or Memory()
    device = PartialState().device or torch.device("cpu")
    precision, why = _precision(device)
    if memory.precision == "bf16" and precision == "fp16":
        raise SpinliteError(f'memory.precision = "bf16", but {why}', fix="remove memory.precision")
    if memory.precision:
        why = f"{why.partition(',')[0]}, {memory.precision} (memory.precision)"
    levers = apply_pins(Levers(precision), memory)
    said = [name for name in memory.model_dump(exclude_none=True) if name not in ("vram", "precision", "attention")]
    pins = [name for name in said if getattr(memory, name) != "none"]
    if pins:
        why += f"; pinned by [memory]: {', '.join(pins)}"
    if levers.merge:
        why += "; the LoRA is merged to play"
    return Device(device, why, levers)


def apply_pins(levers: Levers, memory: Memory) -> Levers:
    """The levers with those put in place that [memory] pins. Raises SpinliteError for one that can't hold.

    The LoRA is merged to play wherever that loses nothing of it, which is in fp32 (see `Slots.merged`).
    """
    asked = {f.name: getattr(memory, f.name) for f in fields(Levers)}
    found = replace(levers, **{name: value for name, value in asked.items() if value is not None})
    exact = found.precision == "fp32" and found.quantize == "none"
    if memory.merge and not exact:
        base = found.precision if found.quantize == "none" else f"a base in {found.quantize}"
        raise SpinliteError(f"memory.merge = true, but {base} would round the LoRA away", fix="remove memory.merge")
    return replace(found, merge=exact) if memory.merge is None else found


def probe_compiler(device: torch.device) -> None:
    """Raises SpinliteError where torch.compile can't run: it needs a C++ compiler on a CPU, Triton on a GPU."""
    try:
        torch.compile(lambda x: (x + 1).square())(torch.zeros(8, device=device))
    except Exception as error:  # of any kind: compilers, linkers, drivers
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SpinliteError(f"memory.compile = true, but torch.compile fails: {said}", fix="remove memory.compile") from None


def _xformers_fails(device: torch.device, dtype: torch.dtype, sizes: Iterable[int]) -> str | None:
    """Why xformers can't be used: tried, forward and back, against torch's own attention. None: it can."""
    if device.type != "cuda":
        return "xformers needs a CUDA card"
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        for size in sizes:
            q, k, v = (torch.randn(1, n, 2, size, device=device, dtype=dtype, requires_grad=True) for n in (64, 77, 77))
            theirs = memory_efficient_attention(q, k, v)
            ours = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
            for mine, other in zip(_slopes(ours, q, k, v), _slopes(theirs, q, k, v), strict=True):
                if not torch.allclose(mine.float(), other.float(), atol=0.05, rtol=0.05):
                    return f"xformers computes something else here, with heads of {size}"
    except ImportError:
        return "xformers is not installed"
    except Exception as error:  # of any kind: a build for another torch or card
        return f"xformers fails here: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None


def _slopes(output: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    return (output, *torch.autograd.grad(output.float().square().sum(), given))


def _precision(device: torch.device) -> tuple[str, str]:
    """(the precision that suits a device, the device in words with the reason)."""
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name}, bf16 (sm_{major}{minor} has it)"
        return "fp16", f"{name}, fp16 (sm_{major}{minor} has no bf16)"
    if device.type == "cpu":
        return "fp32", f"CPU with {torch.get_num_threads()} threads, fp32 (no GPU found)"
    return "fp32", f"{device.type}, fp32"
