"""The device, the precision and the memory settings ("levers") that a run computes with, each choice with its reason."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinlite.config.settings import Memory
from spinlite.errors import SpinliteError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it warns about 4-bit kernels that are not needed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Levers:
    """The memory settings of a run: [memory] with every choice made. `quantize` and `encoders` change results."""

    precision: str = "fp32"
    quantize: str = "none"
    attention: str = "auto"  # xformers if it works here, otherwise torch's
    checkpointing: bool = False
    one_graph: bool = False  # one activation graph at a time: less memory, one more forward for each other policy error
    cache_opponent: bool = False  # measure the opponent's errors of a round before the learning
    micro_batch: int | None = None  # pictures that go through the network together while learning; None: the whole batch
    play_batch: int = 16  # pictures that go through the network together in all other phases
    channels_last: bool = False
    compile: bool = False
    merge: bool = False  # merge the LoRA into the base's weights while it plays or is measured ahead
    encoders: str = "none"  # text encoders in 8 or 4 bits, or on the CPU

    @property
    def encoder_bits(self) -> list[str]:
        """For names of what depends on captions: encoders of fewer bits read them otherwise. [] for whole ones."""
        return [self.encoders] * (self.encoders in ("int8", "nf4"))


@dataclass(frozen=True)
class Device:
    """The device, its memory settings, and the reason in words. LoRA weights and losses are fp32 everywhere."""

    device: torch.device
    why: str
    levers: Levers = field(default_factory=Levers)

    def __str__(self) -> str:
        return self.why

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen base and its activations."""
        return DTYPES[self.levers.precision]

    @property
    def half(self) -> list[str]:
        """For names of what is encoded in half precision; [] for fp32."""
        return [str(self.dtype)] * (self.dtype != torch.float32)

    def optimizer(self, kind: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """An optimizer without weight decay. In brackets: bytes of its state for each LoRA weight.

        "adamw8bit"     bitsandbytes' AdamW with a state of 8 bits (2; small tensors keep 32 bits)
        "adamw"         torch's AdamW (8)
        "schedulefree"  AdamW that averages its weights instead of lowering the rate (8; Defazio et al. 2024, arXiv 2405.15682)
        "prodigy"       AdamW that finds its own rate; `lr` is a factor on it (16; Mishchenko & Defazio 2023, arXiv 2306.06101)
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
        from spinlite.memory.adamw8bit import AdamW8bit

        return AdamW8bit(given, lr=lr, weight_decay=0.0)

    def attention(self, head_sizes: Iterable[int]) -> tuple[str, str]:
        """("xformers" or "sdpa", why) for heads of these sizes. Raises SpinliteError if memory.attention can't be met."""
        sizes = sorted(set(head_sizes))
        if self.levers.attention == "sdpa":
            return "sdpa", "memory.attention"
        fails = _xformers_fails(self.device, self.dtype, sizes)
        if fails is None:
            return "xformers", f"it runs here, forward and back, with heads of {', '.join(map(str, sizes))}"
        if self.levers.attention == "xformers":
            raise SpinliteError(
                f'memory.attention = "xformers", but {fails}',
                fix="remove memory.attention: torch's own attention is then used",
            )
        return "sdpa", fails


@contextlib.contextmanager
def training_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within the block schedule-free's weights are those it trains; after the block, their average. Others are unchanged."""
    averaging: Any = optimizer if hasattr(optimizer, "train") else None
    if averaging:
        averaging.train()
    yield
    if averaging:
        averaging.eval()


@contextlib.contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A block inside `training_weights` in which schedule-free's weights are their average, e.g. to save them."""
    averaging: Any = optimizer if hasattr(optimizer, "train") else None
    if averaging:
        averaging.eval()
    yield
    if averaging:
        averaging.train()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device. A card gets it from pinned memory: from any other, the host waits for the card."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def memory_in_use() -> int:
    """Bytes that this process holds now: on its GPU if it uses one, else in RAM."""
    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else psutil.Process().memory_info().rss


def choose_device(memory: Memory | None = None) -> Device:
    """The best device of this computer, with the settings of [memory]. Raises SpinliteError for one that can't work here."""
    from accelerate import PartialState

    memory = memory or Memory()
    device = PartialState().device or torch.device("cpu")
    precision, why = _precision(device)
    if memory.precision == "bf16" and precision == "fp16":
        raise SpinliteError(f'memory.precision = "bf16", but {why}', fix="remove memory.precision")
    if memory.precision:
        why = f"{why.partition(',')[0]}, {memory.precision} (memory.precision)"
    levers = apply_pins(Levers(precision), memory)
    if levers.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # convolutions would round to 10 bits
    given = [name for name in memory.model_dump(exclude_none=True) if name not in ("vram", "precision", "attention")]
    pins = [name for name in given if getattr(memory, name) != "none"]
    if pins:
        why += f"; set in [memory]: {', '.join(pins)}"
    if levers.merge:
        why += "; the LoRA is merged into the base while it plays"
    return Device(device, why, levers)


def apply_pins(levers: Levers, memory: Memory) -> Levers:
    """The levers, with those replaced that [memory] sets. Raises SpinliteError for memory.merge where it would lose digits.

    Unless [memory] says otherwise, the LoRA is merged for play wherever that is exact, which is in fp32 (see `Slots.merged`).
    """
    given = {f.name: getattr(memory, f.name) for f in fields(Levers)}
    levers = replace(levers, **{name: value for name, value in given.items() if value is not None})
    exact = levers.precision == "fp32" and levers.quantize == "none"
    if memory.merge and not exact:
        base = levers.precision if levers.quantize == "none" else f"a base in {levers.quantize}"
        raise SpinliteError(f"memory.merge = true, but {base} would round the LoRA away", fix="remove memory.merge")
    return replace(levers, merge=exact) if memory.merge is None else levers


def probe_compiler(device: torch.device) -> None:
    """Raises SpinliteError if torch.compile can't run: it needs a C++ compiler on a CPU, Triton on a GPU."""
    try:
        torch.compile(lambda x: (x + 1).square())(torch.zeros(8, device=device))
    except Exception as error:  # of any kind: compilers, linkers, drivers
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SpinliteError(f"memory.compile = true, but torch.compile fails: {reason}", fix="remove memory.compile") from None


def _xformers_fails(device: torch.device, dtype: torch.dtype, sizes: Iterable[int]) -> str | None:
    """Try xformers, forward and backward, against torch's own attention. Returns why it can't be used; None: it works."""
    if device.type != "cuda":
        return "xformers needs a CUDA card"
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        for size in sizes:
            q, k, v = (torch.randn(1, n, 2, size, device=device, dtype=dtype, requires_grad=True) for n in (64, 77, 77))
            theirs = memory_efficient_attention(q, k, v)
            ours = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
            for right, tried in zip(_with_gradients(ours, q, k, v), _with_gradients(theirs, q, k, v), strict=True):
                if not torch.allclose(right.float(), tried.float(), atol=0.05, rtol=0.05):
                    return f"xformers gives wrong results here, with heads of {size}"
    except ImportError:
        return "xformers is not installed"
    except Exception as error:  # of any kind: a build for another torch or card
        return f"xformers fails here: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None


def _with_gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (output, *torch.autograd.grad(output.float().square().sum(), inputs))


def _precision(device: torch.device) -> tuple[str, str]:
    """(the precision for a device, the device and the reason in words)."""
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name}, bf16 (sm_{major}{minor} has it)"
        return "fp16", f"{name}, fp16 (sm_{major}{minor} has no bf16)"
    if device.type == "cpu":
        return "fp32", f"CPU with {torch.get_num_threads()} threads, fp32 (no GPU found)"
    return "fp32", f"{device.type}, fp32"
