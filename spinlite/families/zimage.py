"""Z-Image, over diffusers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spinlite.families.family import Cond
from spinlite.families.flow import Flow, row_lengths
from spinlite.families.latents import Normaliser, scaling_of
from spinlite.families.qwen import read_states
from spinlite.families.zimage_kinds import LENGTH


class ZImage(Flow):
    """Z-Image: a diffusers folder, a hub id, or the files of ComfyUI.

    Conditioning: `prompt`, (B, 512, width) in the network's precision, and `length`, (B,), how many rows of it are the caption.
    """

    loader = "ZImageLoraLoaderMixin"
    quantised = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "adaLN_modulation.0")

    def normaliser(self, vae: Any) -> Normaliser:
        return scaling_of(vae)

    def sampling_shift(self, steps: int, shape: Sequence[int]) -> float:
        return self._checkpoint.config("scheduler")["shift"]

    def shift(self, shape: Sequence[int]) -> float:
        return 2.0  # as sd-scripts and musubi-tuner train it

    def choose_targets(self, modules: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str]]:
        blocks = [name for name in modules if name.startswith(("layers.", "noise_refiner.", "context_refiner."))]
        main = [name for name in blocks if name.startswith("layers.") and "adaLN" not in name]
        return {"linear": main, "all": blocks}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        encoder, tokenizer = self._part("text_encoder"), self._part("tokenizer")
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for caption in captions
        ]
        read = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=LENGTH)
        prompt = read_states(encoder, read.input_ids, read.attention_mask).hidden_states[-2]
        return {"prompt": prompt.to(self._device.dtype).cpu(), "length": read.attention_mask.sum(1).cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network counts time from noise to picture, and says where the picture is rather than the noise."""
        dtype, prompt = self._device.dtype, cond["prompt"]
        lengths = [prompt.shape[1]] * len(prompt) if prompt.is_meta else row_lengths(cond)
        captions = [row[:length].to(dtype) for row, length in zip(prompt, lengths, strict=True)]
        said = self.net(list(x_t.to(dtype).unsqueeze(2)), 1 - t, captions, return_dict=False)[0]
        return -torch.stack(said).squeeze(2)
