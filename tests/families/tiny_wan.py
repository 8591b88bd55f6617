"""A small random Wan 2.1 of the real classes: a diffusers folder, and its files as ComfyUI has them."""

import base64
import gzip
import json
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from spinlite.families import t5
from spinlite.families.flow_layout import original_tensors
from tests.families import tiny

WIDTH = 16  # of the text encoder
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
VAE: dict[str, Any] = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.7, 1.0, 2.0],
}  # fmt: skip


def make(root: Path, name: str = "wan") -> Path:
    """A diffusers folder root/name; latents of pictures (4, 1, 8, 8), 64x64."""
    torch.manual_seed(0)
    folder = root / name
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=32128, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=2))
    parts: dict[str, Any] = {
        "transformer": WanTransformer3DModel(**TRANSFORMER), "vae": AutoencoderKLWan(**VAE), "text_encoder": encoder,
        "tokenizer": t5.build_tokenizer(),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }  # fmt: skip
    tiny.save_parts(folder, parts)
    tiny.save_index(folder, "WanPipeline", parts)
    return folder


def files(folder: Path, root: Path, prefix: str = "") -> Path:
    """The same weights in ComfyUI's folders below `root`; returns the network's file."""
    network = original_tensors("wan", load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    text.pop("encoder.embed_tokens.weight", None)
    text["spiece_model"] = torch.frombuffer(bytearray(sentencepiece()), dtype=torch.uint8)
    for place in ("diffusion_models", "vae", "text_encoders"):
        (root / place).mkdir(parents=True, exist_ok=True)
    tiny.save(root / "vae" / "wan_2.1_vae.safetensors", dict(_original_vae(vae)))
    tiny.save(root / "text_encoders" / "umt5_xxl_fp16.safetensors", text)
    path = root / "diffusion_models" / "wan2.1_t2v_1.3B_bf16.safetensors"
    return tiny.save(path, {f"{prefix}{key}": value for key, value in network.items()})


@cache
def sentencepiece() -> bytes:
    """T5's tokenizer as a model of sentencepiece."""
    made = json.loads(gzip.decompress(t5.TOKENIZER.read_bytes()))
    kinds = {0: 3, 1: 3, made["model"]["unk_id"]: 2}
    rows = [
        _field(1, text.encode()) + _field(2, struct.pack("<f", score), 5) + (_field(3, kinds[i], 0) if i in kinds else b"")
        for i, (text, score) in enumerate(made["model"]["vocab"])
    ]
    changes = base64.b64decode(made["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    return b"".join(_field(1, row) for row in rows) + _field(2, _field(3, 1, 0)) + _field(3, _field(2, changes))


def _field(number: int, value: bytes | int, wire: int = 2) -> bytes:
    """A field of a protocol buffer."""
    key = _number(number << 3 | wire)
    if isinstance(value, int):
        return key + _number(value)
    return key + (_number(len(value)) if wire == 2 else b"") + value


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


INNER = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6.",
         "conv_shortcut.": "shortcut."}  # fmt: skip
TOP = {
    "quant_conv": "conv1", "post_quant_conv": "conv2", "conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0", "mid_block.attentions.0": "middle.1", "mid_block.resnets.1": "middle.2",
}  # fmt: skip


def _original_vae(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Diffusers' names of a VAE with two resnets a level -> those in the published file."""
    for key, value in tensors.items():
        for theirs, own in INNER.items():
            if ".resnets." in key or ".down_blocks." in key:
                key = key.replace(f".{theirs}", f".{own}")
        for theirs, own in TOP.items():
            key = (
                f"{own}{key.removeprefix(theirs)}"
                if key.startswith(f"{theirs}.")
                else key.replace(f"coder.{theirs}.", f"coder.{own}.")
            )
        for level in range(4):
            for place in range(3):
                key = key.replace(f"up_blocks.{level}.resnets.{place}.", f"upsamples.{4 * level + place}.")
            key = key.replace(f"up_blocks.{level}.upsamplers.0.", f"upsamples.{4 * level + 3}.")
        yield key.replace("down_blocks.", "downsamples."), value
