"""Wan 2.1 T2V 1.3B, over diffusers. Pictures are clips of one frame."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spinlite.families.family import Cond
from spinlite.families.flow import Flow
from spinlite.families.latents import Normaliser, PerChannel
from spinlite.families.wan_kinds import LENGTH

SHIFTS = ((832 * 480, 3.0), (1280 * 720, 5.0))  # px, flow_shift: as diffusers' documentation has them for 480p and 720p


class Wan(Flow):
    """Wan 2.1 T2V 1.3B: a diffusers folder, a hub id, or the files of ComfyUI.

    Conditioning: `prompt`, (B, 512, width of UMT5) in the network's precision. After a caption's last token it is zero, and the
    network reads that too, as in training.
    """

    loader = "WanLoraLoaderMixin"
    quantised = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")

    def normaliser(self, vae: Any) -> Normaliser:
        return PerChannel(vae.config.latents_mean, vae.config.latents_std)

    def sampling_shift(self, steps: int, shape: Sequence[int]) -> float:
        (small, low), (large, high) = SHIFTS
        share = (math.prod(shape[-2:]) * self._factor**2 - small) / (large - small)
        return low + (high - low) * min(1.0, max(0.0, share))

    def shift(self, shape: Sequence[int]) -> float:
        return self.sampling_shift(0, shape)  # 3 up to 480p, as musubi-tuner trains it

    def choose_targets(self, modules: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str]]:
        blocks = [name for name in modules if name.startswith("blocks.")]
        return {"linear": blocks, "all": [*blocks, "condition_embedder.time_proj"]}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        return {"prompt": torch.cat([self._read(caption) for caption in captions])}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._device.dtype
        prompt = cond["prompt"].to(dtype)
        return self.net(hidden_states=x_t.to(dtype), timestep=1000 * t, encoder_hidden_states=prompt, return_dict=False)[0]

    def _read(self, caption: str) -> Tensor:
        """What UMT5 says of a caption, (1, 512, width). One is read at a time: the scores of its attention are large."""
        encoder, tokenizer = self._part("text_encoder"), self._part("tokenizer")
        text = " ".join(html.unescape(html.unescape(caption)).split())  # as its pipeline cleans a caption
        read = tokenizer(text, return_tensors="pt", padding="max_length", truncation=True, max_length=LENGTH)
        ids, mask = read.input_ids.to(encoder.device), read.attention_mask.to(encoder.device)
        # on torch's meta device it is of four dimensions, since one of two is looked at to see whether it hides anything
        hides = torch.zeros(1, 1, LENGTH, LENGTH, dtype=self._device.dtype) if ids.is_meta else mask
        said = encoder(ids, hides).last_hidden_state.to(self._device.dtype)
        return (said * mask[..., None].to(said.dtype)).cpu()
