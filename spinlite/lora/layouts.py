"""A LoRA -> the tensors of a file, in kohya's layout or in that of diffusers and peft. `read` goes the other way."""

import math
import re
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from spinlite.lora.tensors import Lora, Pair

Layout = Literal["kohya", "diffusers", "peft", "animatediff"]  # the last two have names that the family chooses
ENDS: dict[Layout, tuple[str, str]] = {  # what the keys of down and up end in, before ".weight"
    "kohya": ("lora_down", "lora_up"), "diffusers": ("lora_A", "lora_B"), "peft": ("lora_A", "lora_B"),
    "animatediff": ("down", "up"),
}  # fmt: skip
ATTENTION = re.compile(r"(text_encoder.*\.self_attn)\.(q_proj|k_proj|v_proj|out_proj)")
LEAST = 2.0**-10  # the smallest alpha: fp16 holds it exactly, and it is not 0, which sd-scripts reads as "alpha = rank"

MOST = 2.0**15  # the largest power of two that fp16 holds


def to_kohya(lora: Lora, key_of: Callable[[str], str], dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """(tensors, alpha): `KEY.lora_down.weight`, `KEY.lora_up.weight`, `KEY.alpha`; change = alpha / rank x up down.

    The whole file has one alpha, since diffusers mixes up alphas that differ; the rest of a module's scale goes into its
    matrices. For fp16 to keep its digits, alpha takes the size of the file's largest change (as a power of two), and `balance`
    gives up and down entries of similar size.
    """
    largest = max(_size(pair) for pair in lora.values())
    alpha = min(max(LEAST, 2.0 ** math.floor(math.log2(largest))), MOST) if largest > 0 else 1.0
    tensors: dict[str, Tensor] = {}
    for name, pair in lora.items():
        down, up = balance(pair.times(pair.rank / alpha))
        key = key_of(name)
        tensors[f"{key}.lora_down.weight"] = down.to(dtype).contiguous()
        tensors[f"{key}.lora_up.weight"] = up.to(dtype).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=dtype if dtype.itemsize > 1 else torch.float32)  # 0 in fp8
    return tensors, alpha


def to_diffusers(
    lora: Lora, dtype: torch.dtype, key_of: Callable[[str], str] = str, layout: Layout = "diffusers"
) -> dict[str, Tensor]:
    """`KEY.lora_A.weight` and `lora_B.weight`, or what else the layout ends keys in; KEY is by default the full name.

    Every scale is folded in: alpha = rank, so no header is needed.
    """
    tensors: dict[str, Tensor] = {}
    for name, pair in lora.items():
        for end, matrix in zip(ENDS[layout], balance(pair), strict=True):
            tensors[f"{key_of(name)}.{end}.weight"] = matrix.to(dtype).contiguous()
    return tensors


def complete_attention(lora: Lora) -> dict[str, Pair]:
    """Add zero pairs where a text encoder's attention has only some of q, k, v and out, because A1111 needs all four."""
    complete = dict(lora)
    for name, pair in lora.items():
        if part := ATTENTION.fullmatch(name):
            for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
                complete.setdefault(f"{part[1]}.{leaf}", pair.times(0.0))
    return complete


def balance(pair: Pair) -> tuple[Tensor, Tensor]:
    """(down, up) of the same change, with largest entries within a factor of 2. Powers of two lose no digit."""
    down, up = pair.down.abs().max().item(), pair.up.abs().max().item()
    if down == 0 or up == 0:
        return pair.down, pair.up
    shift = 2.0 ** round(math.log2(up / down) / 2)
    return pair.down * shift, pair.up / shift


def _size(pair: Pair) -> float:
    """rank x the largest entries of up and down: an alpha of this size leaves both near 1."""
    return pair.rank * pair.down.abs().max().item() * pair.up.abs().max().item()
