"""The tensors of a whole model in one file: which its network must have, which nothing reads, and scales of 8-bit weights."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import FIX_INCOMPLETE
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.names import original_name
from spinlite.families.shapes import unet_keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NET = "model.diffusion_model."
ENCODERS: dict[Kind, dict[str, str]] = {  # how the keys of each text encoder begin; the last one tells the kinds apart
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
}
SCALES = (".scale_weight", ".weight_scale")  # beside a weight in 8 bits, which it is multiplied by
INPUT_SCALES = (".scale_input", ".input_scale")  # for programs that compute in 8 bits
QUANTISED = ("scaled_fp8", ".comfy_quant")  # marks of such files
PARTS = ("first_stage_model.", "vae.", *dict.fromkeys(start for parts in ENCODERS.values() for start in parts.values()))
LEAVES = re.compile(  # of tensors in a VAE or a text encoder that its program reads, or that hold nothing learnt
    r"(weight|bias|in_proj_(weight|bias)|positional_embedding|text_projection|position_ids|logit_scale|attn_mask)$"
)
UNUSED = re.compile(  # what training leaves in a file, or marks
    r"model_ema\.|(v_pred|ztsnr|edm_mean|edm_std|model_type|scale_factor|logvar|lvlb_weights)$|.*(betas|alphas_cumprod\w*)$"
    r"|(log_|sqrt_|posterior_)|denoiser\.|first_stage_model\.(loss|quantize|model_ema)\.|(cond_stage_model|conditioner)\..*logit_scale"
)


def check_network(name: str, shapes: Mapping[str, tuple[int, ...]], kind: Kind) -> None:
    """Raises SpinliteError if the network of the file `name` lacks tensors, or has some that nothing would read."""
    expected = _network_keys(kind)
    found = {key for key in shapes if key.startswith(NET)}
    found -= {key for key in found if _is_scale(key) and _is_read(key, shapes, expected)}
    if unknown := sorted(found - expected):
        problem = f"{name} has {len(unknown)} tensors in its network (UNet) that spinlite can't read, e.g. {unknown[0]}"
        raise SpinliteError(problem, fix="use a version in fp16, bf16 or fp32, without additions to the network")
    if missing := sorted(expected - found):
        problem = f"{name} is incomplete: {len(missing)} weights of its unet are missing, e.g. {missing[0]}"
        raise SpinliteError(problem, fix=FIX_INCOMPLETE)


def unread_keys(keys: Iterable[str]) -> list[str]:
    """Tensors outside the network that nothing reads and that are not known to be useless."""
    return sorted(
        key for key in keys
        if not (key.startswith(NET) or UNUSED.match(key) or _is_scale(key))
        and not (key.startswith(PARTS) and LEAVES.search(key))
    )  # fmt: skip


def scaled(tensors: "Mapping[str, Tensor]", dtype: "torch.dtype") -> "dict[str, Tensor]":
    """The tensors without scales: a weight with a scale beside it (one number, or one a row) is multiplied by it."""
    found = {key: value for key, value in tensors.items() if not _is_scale(key)}
    for key, scale in tensors.items():
        weight = f"{key.rpartition('.')[0]}.weight"
        if key.endswith(SCALES) and weight in found:
            rows = scale.float().flatten()
            rows = rows if rows.numel() == 1 else rows.view(-1, *[1] * (found[weight].ndim - 1))
            found[weight] = (found[weight].float() * rows).to(dtype)
    return found


def has_scales(keys: Iterable[str]) -> bool:
    """Whether a file keeps scales beside its weights."""
    return any(map(_is_scale, keys))


def _is_read(key: str, shapes: Mapping[str, tuple[int, ...]], expected: set[str]) -> bool:
    """Whether a scale or mark is understood: a mark of the whole file, or beside a weight, one number or one for each row."""
    weight = f"{key.rpartition('.')[0]}.weight"
    if key == f"{NET}scaled_fp8":
        return True
    return weight in expected & shapes.keys() and (
        not key.endswith(SCALES) or math.prod(shapes[key]) in (1, shapes[weight][0])
    )  # fmt: skip


def _is_scale(key: str) -> bool:
    return key.endswith((*SCALES, *INPUT_SCALES, *QUANTISED))


def _network_keys(kind: Kind) -> set[str]:
    names = (key.rpartition(".") for key in unet_keys(KINDS[kind].config("unet")))
    return {f"{NET}{original_name(module, kind == 'sdxl')}.{leaf}" for module, _, leaf in names}
