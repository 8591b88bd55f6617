"""A small random FLUX.2 [klein] of the real classes: a diffusers folder, and its files as ComfyUI has them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from spinlite.families.flow_layout import original_tensors
from spinlite.families.qwen import build_tokenizer
from tests.families import tiny

WIDTH = 16  # of the text encoder
TRANSFORMER: dict[str, Any] = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 3 * WIDTH, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (4, 4), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2, "sample_size": 64, "patch_size": (2, 2),
}  # fmt: skip


def make(root: Path, name: str = "klein-4b", distilled: bool = False) -> Path:
    """A diffusers folder root/name; latents (16, 16, 16), pictures 64x64."""
    torch.manual_seed(0)
    folder = root / name
    encoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=151669, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    ))  # fmt: skip
    parts: dict[str, Any] = {
        "transformer": Flux2Transformer2DModel(**TRANSFORMER), "vae": AutoencoderKLFlux2(**VAE), "text_encoder": encoder,
        "tokenizer": build_tokenizer(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }  # fmt: skip
    tiny.save_parts(folder, parts)
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    vae |= {"bn.running_mean": torch.randn(16) * 0.2, "bn.running_var": torch.rand(16) + 0.5}
    tiny.save(folder / "vae" / "diffusion_pytorch_model.safetensors", vae, {"format": "pt"})
    tiny.save_index(folder, "Flux2KleinPipeline", parts, is_distilled=distilled)
    return folder


def files(folder: Path, root: Path, prefix: str = "") -> Path:
    """The same weights in ComfyUI's folders below `root`; returns the network's file."""
    network = original_tensors("klein-4b", load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    vae = {
        _original_vae(key): value for key, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items()
    }
    text = load_file(folder / "text_encoder" / "model.safetensors")
    for place in ("diffusion_models", "vae", "text_encoders"):
        (root / place).mkdir(parents=True, exist_ok=True)
    tiny.save(root / "vae" / "flux2-vae.safetensors", vae)
    tiny.save(root / "text_encoders" / "qwen_3_4b.safetensors", text)
    path = root / "diffusion_models" / "flux-2-klein-base-4b.safetensors"
    return tiny.save(path, {f"{prefix}{key}": value for key, value in network.items()})


def _original_vae(key: str) -> str:
    """As `tiny.vae_name`, for two levels; the 1x1 convolutions at the ends belong to the encoder and the decoder."""
    key = key.replace("post_quant_conv", "decoder.post_quant_conv") if key.startswith("post") else key
    key = f"encoder.{key}" if key.startswith("quant_conv") else key
    return _levels(tiny.vae_name(key))


def _levels(name: str) -> str:
    """`tiny.vae_name` numbers the way out from four levels; this VAE has two."""
    for level in (0, 1):
        name = name.replace(f".up.{3 - level}.", f".up.+{1 - level}.")
    return name.replace(".up.+", ".up.")
