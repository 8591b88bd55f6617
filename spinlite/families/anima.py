"""Anima, over diffusers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spinlite.families.anima_kinds import LENGTH
from spinlite.families.family import Cond
from spinlite.families.flow import Flow
from spinlite.families.latents import Normaliser, PerChannel
from spinlite.families.qwen import read_states


class Anima(Flow):
    """Anima: a diffusers folder, a hub id, or the files of ComfyUI.

    Conditioning: `prompt`, (B, 512, width) in the network's precision. Zeros after a caption's end are part of it.
    """

    loader = "AnimaLoraLoaderMixin"
    quantised = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
    frames = 1

    def normaliser(self, vae: Any) -> Normaliser:
        return PerChannel(vae.config.latents_mean, vae.config.latents_std)

    def sampling_shift(self, steps: int, shape: Sequence[int]) -> float:
        return 3.0

    def shift(self, shape: Sequence[int]) -> float:
        return 1.0  # as sd-scripts and OneTrainer train it

    def choose_targets(self, modules: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str]]:
        blocks = [name for name in modules if name.startswith("transformer_blocks.")]
        return {"linear": [name for name in blocks if ".norm" not in name], "all": blocks}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        encoder, conditioner = self._part("text_encoder"), self._part("text_conditioner")
        read, words = (
            self._part(name)(
                list(captions), return_tensors="pt", padding="max_length", truncation=True, max_length=LENGTH
            ).to(conditioner.device)
            for name in ("tokenizer", "t5_tokenizer")
        )  # fmt: skip
        seen = read.attention_mask.clone()
        seen[:, 0] = 1  # "" has no token: something must be attended to, and its state is made 0 below
        states = read_states(encoder, read.input_ids, seen).last_hidden_state
        states = states.to(conditioner.device, conditioner.dtype) * read.attention_mask[..., None]
        prompt = conditioner(
            source_hidden_states=states, target_input_ids=words.input_ids, target_attention_mask=words.attention_mask,
            source_attention_mask=seen,
        )  # fmt: skip
        return {"prompt": prompt.to(self._device.dtype).cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._device.dtype
        x = torch.cat([x_t.to(dtype), torch.zeros_like(x_t[:, :1], dtype=dtype)], 1)  # nothing is padded
        return self.net(hidden_states=x, timestep=t, encoder_hidden_states=cond["prompt"].to(dtype), return_dict=False)[0]

    def _place_network(self) -> None:
        """The channel that says what is padded comes with the latents: diffusers would need torchvision to make it."""
        super()._place_network()
        net: Any = self.net
        net.register_to_config(concat_padding_mask=False)
