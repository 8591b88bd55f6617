"""A small random Z-Image of the real classes: a diffusers folder, and its files as ComfyUI has them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from spinlite.families.flow_layout import original_tensors
from spinlite.families.qwen import build_tokenizer
from tests.families import tiny

WIDTH = 16  # of the text encoder
TRANSFORMER: dict[str, Any] = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": WIDTH,
    "axes_dims": [8, 4, 4], "axes_lens": [1024, 32, 32],
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (4, 4, 4, 4), "down_block_types": ("DownEncoderBlock2D",) * 4, "norm_num_groups": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 1, "latent_channels": 4, "sample_size": 64,
    "scaling_factor": 0.4, "shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def make(root: Path, name: str = "z-image") -> Path:
    """A diffusers folder root/name; latents (4, 8, 8), pictures 64x64."""
    torch.manual_seed(0)
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=151669, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    ))  # fmt: skip
    parts: dict[str, Any] = {
        "transformer": ZImageTransformer2DModel(**TRANSFORMER), "vae": AutoencoderKL(**VAE), "text_encoder": encoder,
        "tokenizer": build_tokenizer(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }  # fmt: skip
    for model in parts.values():
        if isinstance(model, nn.Module):
            for key, parameter in model.named_parameters():  # as smooth in time as a network that has learnt
                nn.init.normal_(parameter, float(parameter.ndim == 1), 0.015 if key.startswith("t_embedder") else 0.15)
    ZImagePipeline(**parts).save_pretrained(root / name)
    return root / name


def files(folder: Path, root: Path, prefix: str = "") -> Path:
    """The same weights in ComfyUI's folders below `root`; returns the network's file."""
    network = original_tensors("z-image", load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    vae = {tiny.vae_name(key): value for key, value in vae.items()}
    vae = {key: value[:, :, None, None] if ".attn_1." in key and value.ndim == 2 else value for key, value in vae.items()}
    text = load_file(folder / "text_encoder" / "model.safetensors")
    for place in ("diffusion_models", "vae", "text_encoders"):
        (root / place).mkdir(parents=True, exist_ok=True)
    tiny.save(root / "vae" / "ae.safetensors", vae)
    tiny.save(root / "text_encoders" / "qwen_3_4b.safetensors", {f"model.{key}": value for key, value in text.items()})
    path = root / "diffusion_models" / "z_image_bf16.safetensors"
    return tiny.save(path, {f"{prefix}{key}": value for key, value in network.items()})
