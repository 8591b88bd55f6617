"""A small random Anima of the real classes: a diffusers folder, its files as ComfyUI has them, and diffusers' pipeline."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3Model

from spinlite.families import t5
from spinlite.families.flow_layout import original_tensors
from spinlite.families.qwen import build_tokenizer
from tests.families import tiny

WIDTH = 16  # of the text encoder
TRANSFORMER: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "mlp_ratio": 2.0,
    "text_embed_dim": 16, "adaln_lora_dim": 4, "max_size": (4, 32, 32), "rope_scale": (1.0, 4.0, 4.0),
    "extra_pos_embed_type": None,
}  # fmt: skip
VAE: dict[str, Any] = {
    "base_dim": 4, "z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5],
}  # fmt: skip
CONDITIONER: dict[str, Any] = {
    "source_dim": WIDTH, "target_dim": 16, "model_dim": 16, "num_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def make(root: Path, name: str = "anima") -> Path:
    """A diffusers folder root/name; latents (4, 1, 8, 8), pictures 64x64."""
    torch.manual_seed(0)
    folder = root / name
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=151669, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    ))  # fmt: skip
    parts: dict[str, Any] = {
        "transformer": CosmosTransformer3DModel(**TRANSFORMER), "vae": AutoencoderKLQwenImage(**VAE), "text_encoder": encoder,
        "text_conditioner": AnimaTextConditioner(**CONDITIONER), "tokenizer": build_tokenizer(),
        "t5_tokenizer": t5.build_tokenizer(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip
    tiny.save_parts(folder, parts)
    return folder


def files(folder: Path, root: Path, prefix: str = "net.") -> Path:
    """The same weights in ComfyUI's folders below `root`; returns the network's file."""
    network = original_tensors("anima", load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    adapter = load_file(folder / "text_conditioner" / "diffusion_pytorch_model.safetensors")
    network |= {f"llm_adapter.{key}": value for key, value in adapter.items()}
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    for place in ("diffusion_models", "vae", "text_encoders"):
        (root / place).mkdir(parents=True, exist_ok=True)
    tiny.save(root / "vae" / "qwen_image_vae.safetensors", {original_vae(key): value for key, value in vae.items()})
    tiny.save(root / "text_encoders" / "qwen_3_06b_base.safetensors", {f"model.{key}": text[key] for key in text})
    path = root / "diffusion_models" / "anima-base-v1.0.safetensors"
    return tiny.save(path, {f"{prefix}{key}": value for key, value in network.items()})


def pipeline(folder: Path) -> Any:
    """diffusers' pipeline for Anima, which is put together from blocks."""
    made: dict[str, Any] = {
        "transformer": CosmosTransformer3DModel, "vae": AutoencoderKLQwenImage, "text_conditioner": AnimaTextConditioner,
        "text_encoder": Qwen3Model, "scheduler": FlowMatchEulerDiscreteScheduler,
    }  # fmt: skip
    parts = {name: kind.from_pretrained(str(folder / name)) for name, kind in made.items()}
    pipe: Any = AnimaAutoBlocks().init_pipeline()
    pipe.update_components(**parts, tokenizer=build_tokenizer(), t5_tokenizer=t5.build_tokenizer())
    return pipe


def original_vae(key: str) -> str:
    """A tensor of Wan's VAE: diffusers' name -> the original one."""
    for mine, theirs in (("quant_conv", "conv1"), ("post_quant_conv", "conv2")):
        if key.startswith(f"{mine}."):
            return key.replace(mine, theirs)
    key = key.replace("coder.conv_in.", "coder.conv1.").replace("coder.norm_out.", "coder.head.0.")
    key = key.replace("coder.conv_out.", "coder.head.2.").replace(".down_blocks.", ".downsamples.")
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", key)
    key = key.replace("mid_block.attentions.0", "middle.1")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", key)
    if re.search(r"middle\.1\.|resample|time_conv", key):
        return key
    for mine, theirs in (("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6")):
        key = re.sub(rf"(downsamples|upsamples|middle)\.(\d+)\.{mine}\.", rf"\1.\2.{theirs}.", key)
    return key.replace(".conv_shortcut.", ".shortcut.")
