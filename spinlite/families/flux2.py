"""FLUX.2 [klein] base, over diffusers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from spinlite.families.family import Cond
from spinlite.families.flow import Flow
from spinlite.families.flux2_kinds import LENGTH
from spinlite.families.latents import Normaliser, Patched
from spinlite.families.qwen import read_states

STATES = (9, 18, 27)  # of the text encoder's layers, side by side


class Klein(Flow):
    """FLUX.2 [klein] base: a diffusers folder, a hub id, or the files of ComfyUI.

    Conditioning: `prompt`, (B, 512, 3 x width) in the network's precision. Padding is part of it, as in training.
    """

    loader = "Flux2LoraLoaderMixin"
    encoder_layers = max(STATES) + 1  # the state after the last layer of all would be normed
    quantised = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "linear_in", "linear_out",
        "to_qkv_mlp_proj", "attn.to_out", "stream_modulation_img.linear", "stream_modulation_txt.linear",
        "single_stream_modulation.linear",
    )  # fmt: skip

    def normaliser(self, vae: Any) -> Normaliser:
        return Patched(vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt())

    def sampling_shift(self, steps: int, shape: Sequence[int]) -> float:
        return math.exp(compute_empirical_mu(math.prod(shape[-2:]), steps))

    def shift(self, shape: Sequence[int]) -> float:
        return 3.0  # as diffusion-pipe trains every model with FLUX.2's VAE

    def choose_targets(self, modules: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str]]:
        blocks = [name for name in modules if name.startswith(("transformer_blocks.", "single_transformer_blocks."))]
        return {"linear": blocks, "all": [*blocks, *(name for name in modules if "_modulation" in name)]}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        encoder, tokenizer = self._part("text_encoder"), self._part("tokenizer")
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for caption in captions
        ]
        read = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=LENGTH)
        said = read_states(encoder, read.input_ids, read.attention_mask)
        prompt = torch.cat([said.hidden_states[layer] for layer in STATES], -1)
        return {"prompt": prompt.to(self._device.dtype).cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype, prompt = self._device.dtype, cond["prompt"]
        ids: Any = Flux2KleinPipeline
        with x_t.device:  # made there: what is brought there makes the host wait
            places, words = ids._prepare_latent_ids(x_t[:1]), ids._prepare_text_ids(prompt[:1])
        flat = self.net(
            hidden_states=x_t.to(dtype).flatten(2).transpose(1, 2), encoder_hidden_states=prompt.to(dtype), timestep=t,
            img_ids=places, txt_ids=words, guidance=None, return_dict=False,
        )[0]  # fmt: skip
        return flat.transpose(1, 2).unflatten(2, x_t.shape[-2:])
