"""Small random motion modules of AnimateDiff, of the real class, as diffusers folders and files; and a smaller SD 1.5."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from tests.families import tiny

CONFIG: dict[str, Any] = {
    "block_out_channels": (16, 16, 32, 32), "motion_layers_per_block": 2, "motion_norm_num_groups": 8,
    "motion_num_attention_heads": 2, "motion_max_seq_length": 8, "use_motion_mid_block": False,
}  # fmt: skip
SMALLER = {"block_out_channels": (8, 16), "motion_layers_per_block": 1}


def base(sd15: Path, root: Path) -> Path:
    """tiny's SD 1.5 with a UNet of half the levels, and a motion module for it, in root."""
    shutil.copytree(sd15, root)
    shutil.rmtree(root / "unet")
    unet: dict[str, Any] = {
        "down_block_types": [tiny.CAD, tiny.D], "up_block_types": [tiny.U, tiny.CAU], "block_out_channels": [8, 16],
        "attention_head_dim": 2, "cross_attention_dim": 24, "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8,
    }  # fmt: skip
    tiny.save_parts(root, {"unet": UNet2DConditionModel(**unet)})
    make(root, **SMALLER)
    return root


def make(root: Path, name: str = "motion_adapter", **others: Any) -> Path:
    """A diffusers folder root/name with a motion module for tiny's SD 1.5."""
    torch.manual_seed(0)
    tiny.save_parts(root, {name: MotionAdapter(**CONFIG | others)})
    return root / name


def file(folder: Path, path: Path, longest: int = 8) -> Path:
    """The same weights in a file as AnimateDiff's authors name them, with the places of so many frames."""
    found: dict[str, Tensor] = {}
    for key, value in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        start, _, rest = key.partition(".motion_modules.")
        number, _, rest = rest.partition(".")
        rest = rest.replace("attn1", "attention_blocks.0").replace("attn2", "attention_blocks.1")
        rest = rest.replace(".norm1.", ".norms.0.").replace(".norm2.", ".norms.1.").replace(".norm3.", ".ff_norm.")
        name = f"{start}.motion_modules.{number}.temporal_transformer.{rest}"
        if rest.endswith("pos_embed.pe"):
            for i in (0, 1):
                found[name.replace("pos_embed", f"attention_blocks.{i}.pos_encoder")] = value[:, :longest]
        else:
            found[name] = value
    return tiny.save(path, found)
