"""Small flow models for tests: how each kind is made, and what tests of every kind share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.settings import Model
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.kinds import KINDS
from spinlite.families.load import load_family
from spinlite.families.names import module_shapes
from spinlite.lora.tensors import Lora, Pair
from spinlite.memory.device import Device, Levers
from spinlite.training.batches import Batch
from tests.families import tiny_anima, tiny_klein, tiny_wan, tiny_zimage

CAPTIONS = ["a red cat", "two dogs on a hill, at night"]
SIDE = 64
CONDS: dict[str, Cond] = {}


@dataclass(frozen=True)
class Tiny:
    """A kind's small base: a diffusers folder, and its files as ComfyUI has them."""

    make: Callable[[Path, str], Path]
    files: Callable[..., Path]  # (folder, root, prefix) -> the network's file
    vae: str  # the name of the VAE's file
    text: str  # and of the text encoder's
    modules: int  # that learn
    learns: str  # one of them, as a LoRA file names it
    architecture: str


TINY = {
    "klein-4b": Tiny(
        tiny_klein.make, tiny_klein.files, "flux2-vae", "qwen_3_4b", 16,
        "transformer.single_transformer_blocks.1.attn.to_qkv_mlp_proj", "flux.2-klein-4b/lora",
    ),
    "anima": Tiny(
        tiny_anima.make, tiny_anima.files, "qwen_image_vae", "qwen_3_06b_base", 20,
        "diffusion_model.blocks.1.cross_attn.output_proj", "anima/lora",
    ),
    "z-image": Tiny(
        tiny_zimage.make, tiny_zimage.files, "ae", "qwen_3_4b", 14, "diffusion_model.layers.1.attention.to_out.0",
        "z-image/lora",
    ),
    "wan": Tiny(
        tiny_wan.make, tiny_wan.files, "wan_2.1_vae", "umt5_xxl_fp16", 20, "diffusion_model.blocks.1.cross_attn.o",
        "wan-2_1-text2video-1_3b/lora",
    ),
}  # fmt: skip


def load(base: Path, levers: Levers | None = None, **model: Any) -> Family:
    where = Device(torch.device("cpu"), "a test", levers or Levers())
    return load_family(Model(base=str(base), resolution=SIDE, **model), where)


def pictures() -> list[Picture]:
    made = torch.randint(0, 256, (2, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.fromarray(pixels.numpy()) for pixels in made]
    return [Picture(image, image.size, (0, 0)) for image in images]


def batch_of(family: Family) -> Batch:
    """Two samples. Captions are encoded once for every family of the same text encoder."""
    torch.manual_seed(1)
    latents = torch.randn(3, 2, *family.latent_shape)
    cond = CONDS.get(family.caption_hash) or CONDS.setdefault(family.caption_hash, family.encode_captions(CAPTIONS))
    return Batch(latents[0], latents[1], latents[2], torch.tensor([0.3, 0.8]), dict(cond))


def random_lora(family: Family, rank: int = 2) -> Lora:
    shapes = {name: module_shapes(family.net)[name] for name in family.lora_targets["linear"]}
    torch.manual_seed(0)
    return {f"unet.{name}": Pair(torch.randn(rank, s[1]) / 8, torch.randn(s[0], rank) / 8) for name, s in shapes.items()}


def renamed(kind: str, lora: Lora, naming: str) -> dict[str, Tensor]:
    """The LoRA as other programs name it. Three layers in one matrix become one LoRA of three times the rank."""
    files = KINDS[kind].files
    assert files
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Pair]] = {}
    for full, pair in lora.items():
        module = full.removeprefix("unet.")
        place = files.native(f"{module}.weight")
        if naming in ("diffusers", "bare"):
            found |= _named(f"{'transformer.' * (naming == 'diffusers')}{module}", pair.down, pair.up, naming)
        elif place.third is None:
            found |= _named(place.key.removesuffix(".weight"), pair.down, pair.up, naming)
        else:
            thirds.setdefault(place.key.removesuffix(".weight"), {})[place.third] = pair
    for name, parts in thirds.items():
        down = torch.cat([parts[i].down for i in range(3)])
        up = torch.block_diag(*(parts[i].up for i in range(3)))
        found |= _named(name, down, up, naming)
    return found


def _named(name: str, down: Tensor, up: Tensor, naming: str) -> dict[str, Tensor]:
    if naming != "kohya":
        name = f"{'diffusion_model.' * (naming == 'comfy')}{name}"
        return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    key = f"lora_unet_{name.replace('.', '_')}"
    alpha = torch.tensor(float(len(down)))
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}


def require_velocity(family: Family, scheduler: Any) -> None:
    """The training target is the velocity: one step of diffusers' scheduler along it leads from noise back to the pictures."""
    b, first = batch_of(family), scheduler.timesteps[0]
    t = (first / 1000).expand(2)
    x_t = family.path.noise(b.real, b.eps, t)
    assert_close(x_t, scheduler.scale_noise(b.real, first[None], b.eps), atol=1e-5, rtol=1e-5)
    target = family.path.target(b.real, b.eps, t)
    assert_close(scheduler.step(target, first, x_t).prev_sample, b.real, atol=1e-5, rtol=1e-5)
