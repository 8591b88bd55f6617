"""Stable Diffusion 1.x and 2.x, over diffusers."""

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


class StableDiffusion(Family):
    """A diffusers folder, a hub id, or a single file of SD 1.x or 2.x; "demo" is the one that ships with spinlite.

    Conditioning is the text encoder's last state, after its final norm. SD 2.x's encoder is stored without its last layer.
    """

    lora_targets = TARGETS

    def __init__(
        self, base: str, device: Device, *, vae: str | None = None, prediction: str = "auto", zero_snr: bool | None = None
    ) -> None:
        parts = Parts(base, ("sd1", "sd2"), device, vae, prediction, zero_snr)
        self._parts = parts
        self.net, self.path, self.title, self.base_hash = parts.net, parts.path, parts.title, parts.base_hash
        self.latent_shape, self.size, self.step = parts.latent_shape, parts.size, parts.step
        self.attention, self.picture_hash, self.caption_hash = parts.attention, parts.picture_hash, parts.caption_hash

    def start_from(self, path: FilePath) -> None:
        self.start = self._parts.start_from(path)
        self.base_hash, self.caption_hash = self._parts.base_hash, self._parts.caption_hash

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        return {"x0": self._parts.encode_images([picture.image for picture in pictures], sampled)}

    def encode_captions(self, captions: Sequence[str]) -> Cond:
        with torch.no_grad():
            return {"prompt": self._parts.part("text_encoder")(self._parts.tokenize(captions)).last_hidden_state.cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._parts.device.dtype
        return self.net(x_t.to(dtype), t, encoder_hidden_states=cond["prompt"].to(dtype)).sample

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
        v = self.path.prediction == "v"
        if self._parts.kind == "sd2":
            architecture = "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"
        else:
            architecture = "stable-diffusion-v1"
        version = ("sd_v2" if self._parts.kind == "sd2" else "sd_v1") + "_v" * v
        return self._parts.export_metadata(version, architecture, "diffusers")
