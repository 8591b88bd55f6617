"""Small random bases of the real classes and the real block structure, and their weights in the original layout."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from spinlite.families.clip import build_tokenizer

CAD, D, CAU, U = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
DEEP = {"down_block_types": [CAD, CAD, CAD, D], "up_block_types": [U, CAU, CAU, CAU], "block_out_channels": [16, 16, 32, 32]}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {**DEEP, "attention_head_dim": 2, "cross_attention_dim": 24},
    "sd21": {**DEEP, "attention_head_dim": [2, 2, 4, 4], "cross_attention_dim": 40, "use_linear_projection": True},
    "sdxl": {
        "down_block_types": [D, CAD, CAD], "up_block_types": [CAU, CAU, U], "block_out_channels": [16, 16, 32],
        "attention_head_dim": [2, 2, 4], "transformer_layers_per_block": [1, 2, 2], "cross_attention_dim": 64,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    },
}  # fmt: skip


def make(root: Path, kind: str) -> Path:
    """A diffusers folder root/kind of a "sd15", "sd21" or "sdxl"; latents 8x8, pictures 64x64."""
    torch.manual_seed(0)
    first = build_tokenizer()
    vae: dict[str, Any] = {
        "block_out_channels": (8, 8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 4, "layers_per_block": 2,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 4, "sample_size": 64, "scaling_factor": 0.2,
    }  # fmt: skip
    noise: dict[str, Any] = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
    }  # fmt: skip
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(sample_size=8, norm_num_groups=8, layers_per_block=2, **UNETS[kind]),
        "vae": AutoencoderKL(**vae),
        "scheduler": DDIMScheduler(**noise),
        "tokenizer": first,
        "text_encoder": CLIPTextModel(_clip(40, "gelu") if kind == "sd21" else _clip(24, "quick_gelu")),
    }
    if kind == "sdxl":
        second = build_tokenizer()
        second.pad_token = "!"
        more = {"tokenizer_2": second, "text_encoder_2": CLIPTextModelWithProjection(_clip(40, "gelu"))}
        pipe: Any = StableDiffusionXLPipeline(**parts, **more)
    else:
        if kind == "sd21":
            first.pad_token = "!"
        nothing: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **nothing)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for p in part.parameters():
                torch.nn.init.normal_(p, 0.0, 0.15)
    pipe.save_pretrained(root / kind)
    return root / kind


def _clip(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, projection_dim=width,
        hidden_act=activation, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip


def original(folder: Path) -> dict[str, Tensor]:
    """The weights of a base made by `make`, under the names and in the shapes of the original layout."""
    xl = folder.name == "sdxl"
    found = {f"model.diffusion_model.{unet_name(k, xl)}": v for k, v in _weights(folder, "unet").items()}
    for key, value in _weights(folder, "vae").items():
        name = vae_name(key)
        matrix = ".attn_1." in name and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if matrix else value  # once 1x1 convolutions
    first = _weights(folder, "text_encoder")
    if folder.name == "sd21":
        found |= _open_clip("cond_stage_model.model.", first)
        last = {k.replace("resblocks.1.", "resblocks.23."): v.clone() for k, v in found.items() if "resblocks.1." in k}
        found |= last | {"cond_stage_model.model.text_projection": torch.randn(40, 40)}  # there, and not used
    else:
        start = "cond_stage_model" if folder.name == "sd15" else "conditioner.embedders.0"
        found |= {f"{start}.transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in first.items()}
    if xl:
        found |= _open_clip("conditioner.embedders.1.model.", _weights(folder, "text_encoder_2"))
    return {name: value.contiguous() for name, value in found.items()}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
    return path


def save_parts(folder: Path, parts: dict[str, Any]) -> None:
    """Save each part in diffusers' layout; networks get random weights."""
    for part, model in parts.items():
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                nn.init.normal_(parameter, float(parameter.ndim == 1), 0.15)
        model.save_pretrained(folder / part)  # pyright: ignore[reportCallIssue]


def save_index(folder: Path, pipeline: str, parts: dict[str, Any], **more: Any) -> None:
    """Say which pipeline of diffusers the parts make."""
    classes = {part: [type(model).__module__.split(".")[0], type(model).__name__] for part, model in parts.items()}
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **more, **classes}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _weights(folder: Path, part: str) -> dict[str, Tensor]:
    return load_file(next((folder / part).glob("*.safetensors")))


TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def unet_name(key: str, xl: bool) -> str:
    """diffusers' name of a UNet weight -> the original one. SD 1's and 2's first upsampler follows no attention."""
    module, _, leaf = key.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{leaf}"
    p = key.split(".")
    if p[0] == "mid_block":
        block, kind, rest = f"middle_block.{ {'resnets0': 0, 'attentions0': 1, 'resnets1': 2}[p[1] + p[2]] }", p[1], p[3:]
    elif p[2] == "downsamplers":
        return f"input_blocks.{3 * int(p[1]) + 3}.0.op.{leaf}"
    elif p[2] == "upsamplers":
        return f"output_blocks.{3 * int(p[1]) + 2}.{1 if p[1] == '0' and not xl else 2}.conv.{leaf}"
    else:
        first = 3 * int(p[1]) + int(p[3])
        side = f"input_blocks.{first + 1}" if p[0] == "down_blocks" else f"output_blocks.{first}"
        block, kind, rest = f"{side}.{int(p[2] == 'attentions')}", p[2], p[4:]
    return ".".join([block, *([RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest)])


def vae_name(key: str) -> str:
    """diffusers' name of a VAE weight -> the original one. Its way out is numbered from the end."""
    p = key.split(".")
    if p[0] not in ("encoder", "decoder"):
        return key
    if p[1] == "mid_block":
        place = ["mid", "attn_1" if p[2] == "attentions" else f"block_{int(p[3]) + 1}"]
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return ".".join([p[0], *place, names.get(p[4], p[4]), p[-1]])
    if p[1] in ("down_blocks", "up_blocks"):
        side, level = ("down", int(p[2])) if p[1] == "down_blocks" else ("up", 3 - int(p[2]))
        if p[3] == "resnets":
            return ".".join([p[0], side, str(level), "block", p[4], *p[5:]]).replace("conv_shortcut", "nin_shortcut")
        return f"{p[0]}.{side}.{level}.{side}sample.conv.{p[-1]}"
    return key.replace("conv_norm_out", "norm_out")


def _open_clip(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder as OpenCLIP names it; query, key and value are one matrix there."""
    weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm.weight": "ln_final.weight",
        "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    found = {names[k]: v for k, v in weights.items() if k in names}
    if "text_projection.weight" in weights:
        found["text_projection"] = weights["text_projection.weight"].T
    for i in range(2):
        old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            joined = [weights[f"{old}self_attn.{n}_proj.{leaf}"] for n in "qkv"]
            found[f"{new}attn.in_proj_{leaf}"] = torch.cat(joined)
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                         ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                found[f"{new}{b}.{leaf}"] = weights[f"{old}{a}.{leaf}"]
    return {prefix + k: v for k, v in found.items()}
