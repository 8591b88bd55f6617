"""The original (LDM, SGM) layout of whole models: where a module's weight is in it, and how to write a diffusers model in it.

The other direction, from this layout to diffusers, is in `single_file`.
"""

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import Checkpoint
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.motion_kinds import is_motion
from spinlite.families.names import original_name
from spinlite.families.record import Place
from spinlite.families.single_file import ENCODERS, NET, has_published_size

CLIP = {  # a layer's parts: transformers' names -> OpenCLIP's
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}  # fmt: skip
CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
JOINED = ("q_proj", "k_proj", "v_proj")  # OpenCLIP keeps these in one matrix
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}  # of the VAE


def find_places(name: str, kind: Kind, keys: Container[str]) -> list[Place]:
    """Where a module, by its full name, is in a file with these keys: nowhere, once, or twice if the file has EMA weights."""
    part, _, module = name.partition(".")
    if is_motion(module):
        return []
    if part == "unet":
        key = f"{NET}{original_name(module, kind == 'sdxl')}.weight"
        average = "model_ema." + key.removeprefix("model.").removesuffix(".weight").replace(".", "") + "weight"
        places = [Place(key), Place(average)]
    else:
        prefix = ENCODERS[kind].get(part, "")
        places = [Place(f"{prefix}{module}.weight"), Place(f"{prefix}{module.removeprefix('text_model.')}.weight")]
        if layer := LAYER.fullmatch(module.removeprefix("text_model.")):
            block, leaf = f"{prefix}transformer.resblocks.{layer[1]}.", layer[2].removeprefix("self_attn.")
            third = JOINED.index(leaf) if leaf in JOINED else None
            places.append(Place(f"{block}attn.in_proj_weight", third) if leaf in JOINED else
                          Place(f"{block}{CLIP.get(layer[2], layer[2])}.weight"))  # fmt: skip
    return [place for place in places if place.key in keys]


def single_file_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """A diffusers model's weights under the names that one file has, and the keys that mark v-prediction there.

    Raises SpinliteError if the model's sizes are not the published ones.
    """
    if not has_published_size(checkpoint):
        why = f"is not of the published size of {KINDS[checkpoint.kind].title}: other programs could not open it"
        raise SpinliteError(f"{checkpoint.name} {why}", fix="keep the LoRA as a file of its own: spinlite export RUN")
    names = ("unet", "vae", *ENCODERS[checkpoint.kind])
    tensors = original_tensors(checkpoint.kind, {name: checkpoint.load(name, dtype).state_dict() for name in names})
    marks = {"v_pred": "v" in checkpoint.predictions.values(), "ztsnr": bool(checkpoint.zero_snr)}
    return tensors | {key: torch.zeros(0) for key, is_set in marks.items() if is_set}


def original_tensors(kind: Kind, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of a diffusers model by part ("unet", "vae", "text_encoder", …) -> the same weights under one file's names."""
    xl = kind == "sdxl"
    found: dict[str, Tensor] = {}
    for key, value in parts["unet"].items():
        module, _, leaf = key.rpartition(".")
        found[f"{NET}{original_name(module, xl)}.{leaf}"] = value
    for key, value in parts["vae"].items():
        name = _vae_name(key)
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if ".attn_1." in name and value.ndim == 2 else value
    for part, prefix in ENCODERS[kind].items():
        plain = {key.removeprefix("text_model."): value for key, value in parts[part].items()}
        if prefix.endswith(".model."):
            found |= {f"{prefix}{key}": value for key, value in _open_clip(plain).items()}
        else:
            found |= {f"{prefix}text_model.{key}": value for key, value in plain.items()}
    return found


def _vae_name(key: str) -> str:
    """diffusers' name of a VAE weight -> the original one, which numbers the decoder's levels from the end."""
    side, _, rest = key.partition(".")
    if side not in ("encoder", "decoder"):
        return key
    parts = rest.split(".")
    match parts:
        case ["mid_block", "attentions", "0", leaf, *more]:
            return ".".join([side, "mid.attn_1", ATTENTION[leaf], more[-1]])
        case ["mid_block", "resnets", number, *more]:
            return ".".join([side, f"mid.block_{int(number) + 1}", *more])
        case ["down_blocks" | "up_blocks" as way, level, "resnets", number, *more]:
            short, at = ("down", level) if way == "down_blocks" else ("up", str(3 - int(level)))
            return ".".join([side, short, at, "block", number, *more]).replace("conv_shortcut", "nin_shortcut")
        case ["down_blocks", level, "downsamplers", _, *more]:
            return ".".join([side, "down", level, "downsample", *more])
        case ["up_blocks", level, "upsamplers", _, *more]:
            return ".".join([side, "up", str(3 - int(level)), "upsample", *more])
    return key.replace("conv_norm_out", "norm_out")


def _open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under OpenCLIP's names, with query, key and value in one matrix."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        module, _, leaf = key.rpartition(".")
        if key in CLIP_ENDS:
            found[CLIP_ENDS[key]] = value
        elif key == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif layer := LAYER.fullmatch(module):
            block = f"transformer.resblocks.{layer[1]}."
            if layer[2] in CLIP:
                found[f"{block}{CLIP[layer[2]]}.{leaf}"] = value
            elif layer[2].endswith("q_proj"):
                stem = module.removesuffix("q_proj")
                found[f"{block}attn.in_proj_{leaf}"] = torch.cat([weights[f"{stem}{one}.{leaf}"] for one in JOINED])
    return found
