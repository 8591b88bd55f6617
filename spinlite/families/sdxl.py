"""Stable Diffusion XL and its finetunes, over diffusers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path as FilePath
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from spinlite.families.diffusion import TARGETS, Parts
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.names import kohya_name
from spinlite.memory.device import Device


class StableDiffusionXL(Family):
    """A diffusers folder, a hub id, or a single file of SDXL.

    Conditioning (Podell et al. 2023, arXiv 2307.01952, section 2): `prompt`, both text encoders' states before the last
    layer, side by side; `pooled`, the second encoder's projection; `time_ids`, (original height, original width, crop top,
    crop left, height, width). Without `time_ids` a sample counts as neither resized nor cropped.
    """

    lora_targets = TARGETS

    def __init__(
        self, base: str, device: Device, *, vae: str | None = None, prediction: str = "auto", zero_snr: bool | None = None
    ) -> None:
        parts = Parts(base, ("sdxl",), device, vae, prediction, zero_snr)
        self._parts = parts
        self.net, self.path, self.title, self.base_hash = parts.net, parts.path, parts.title, parts.base_hash
        self.latent_shape, self.size, self.step = parts.latent_shape, parts.size, parts.step
        self.attention, self.picture_hash, self.caption_hash = parts.attention, parts.picture_hash, parts.caption_hash

    def start_from(self, path: FilePath) -> None:
        self.start = self._parts.start_from(path)
        self.base_hash, self.caption_hash = self._parts.base_hash, self._parts.caption_hash

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        rows = [(*p.original_size[::-1], *p.crop[::-1], p.image.height, p.image.width) for p in pictures]
        latents = self._parts.encode_images([picture.image for picture in pictures], sampled)
        return {"x0": latents, "time_ids": torch.tensor(rows, dtype=torch.float32)}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Cond:
        parts = self._parts
        first = parts.part("text_encoder")(parts.tokenize(captions), output_hidden_states=True)
        second = parts.part("text_encoder_2")(parts.tokenize(captions, "tokenizer_2"), output_hidden_states=True)
        prompt = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return {"prompt": prompt.cpu(), "pooled": second.text_embeds.cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._parts.device.dtype
        ids = cond.get("time_ids")  # in fp32: bf16 can't hold 1023
        if ids is None:
            height, width = (side * self._parts.factor for side in x_t.shape[-2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]], device=x_t.device).expand(len(x_t), -1).float()
        added = {"text_embeds": cond["pooled"].to(dtype), "time_ids": ids}
        return self.net(x_t.to(dtype), t, encoder_hidden_states=cond["prompt"].to(dtype), added_cond_kwargs=added).sample

    def decode(self, latents: Tensor) -> list[Image]:
        return self._parts.decode_latents(latents)

    def free(self) -> None:
        self._parts.free()

    def set_checkpointing(self, on: bool) -> None:
        self._parts.set_checkpointing(on)

    def sampler(self, name: str, spacing: str) -> Any:
        return self._parts.sampler(name, spacing)

    def export_name(self, name: str) -> str:
        return kohya_name(name, self._parts.kind)

    def with_lora_file(self, path: FilePath, strength: float) -> AbstractContextManager[None]:
        return self._parts.with_lora_file(path, strength)

    def export_metadata(self) -> dict[str, str]:
        implementation = "https://github.com/Stability-AI/generative-models"
        return self._parts.export_metadata("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", implementation)
