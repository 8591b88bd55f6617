"""Stable Diffusion XL and its finetunes, over diffusers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spinlite.families.diffusion import Diffusion
from spinlite.families.family import Cond, Picture


class StableDiffusionXL(Diffusion):
    """A diffusers folder, a hub id, or a single file of SDXL.

    Conditioning (Podell et al. 2023, arXiv 2307.01952, section 2): `prompt`, both text encoders' states before the last
    layer (or at that of model.clip_skip), side by side; `pooled`, the second encoder's projection, of a caption's first chunk;
    `time_ids`, (original height, original width, crop top, crop left, height, width). Without `time_ids` a sample counts as
    neither resized nor cropped.
    """

    kinds = ("sdxl",)

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        rows = [(*p.original_size[::-1], *p.crop[::-1], p.image.height, p.image.width) for p in pictures]
        return super().encode_pictures(pictures, sampled) | {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        first, _ = self._read(captions, chunks, "", normed=False)
        second, said = self._read(captions, chunks, "_2", normed=False)
        return {"prompt": torch.cat([first, second], -1).cpu(), "pooled": said.text_embeds[::chunks].cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._device.dtype
        ids = cond.get("time_ids")  # in fp32: bf16 can't hold 1023
        if ids is None:
            height, width = (side * self._factor for side in x_t.shape[-2:])
            sizes = (height, width, 0, 0, height, width)
            ids = torch.cat([torch.full((len(x_t), 1), float(size), device=x_t.device) for size in sizes], 1)
        added = {"text_embeds": cond["pooled"].to(dtype), "time_ids": ids}
        return self.net(x_t.to(dtype), t, encoder_hidden_states=cond["prompt"].to(dtype), added_cond_kwargs=added).sample

    def export_metadata(self) -> dict[str, str]:
        implementation = "https://github.com/Stability-AI/generative-models"
        return self._describe_base("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", implementation)
