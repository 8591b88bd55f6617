"""The demo's text encoder and UNet, learnt together from the mixed web: caption -> latents by denoising.

Latents and noise are (B, 4, 16, 16), scaled to unit deviation; t is (B,); token ids are (B, 32).
"""

import copy
import math
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .loop import device, draws, train
from .materials import Concept, caption
from .vae import to_signal
from .web import VARIANTS, Drawn, HandChooser, plan, shown
from .words import END, START

BATCH, STEPS, PEAK, SEED = 16, 2_200, 5e-4, 3
AT_ONCE = 16  # pictures through the VAE
WIDTH = 96

# Stable Diffusion 1.5's noise schedule
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


class Pair(nn.Module):
    """The two networks that learn together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=32,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.convert_tokens_to_ids(START),  # type: ignore[arg-type]
                eos_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
                pad_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
            )
        )
        settings: dict[str, Any] = {
            "sample_size": 16,
            "block_out_channels": (64, 64, 80),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 4,  # as in SD 1.5, the number of heads
            "norm_num_groups": 16,
        }
        self.unet = UNet2DConditionModel(**settings)

    @classmethod
    def read(cls, base: Path, tokenizer: CLIPTokenizer) -> "Pair":
        """The networks of a base folder, in fp32."""
        pair = cls(tokenizer)
        pair.unet.load_state_dict(load_file(base / "unet" / "diffusion_pytorch_model.safetensors"))
        pair.text.load_state_dict(load_file(base / "text_encoder" / "model.safetensors"))
        return pair

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor, which: Tensor) -> Tensor:
        """The noise in x_t, (B, 4, 16, 16). `tokens` holds each caption of the batch once, `which` says whose it is."""
        cond = self.text(tokens).last_hidden_state[which]
        return self.unet(x_t, t, cond).sample


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures -> latents at the VAE's own scale, in bf16 on every core: (N, 3, 64, 64) -> (N, 4, 16, 16), half precision."""
    where = device()

    def some(part: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16):
            signal = to_signal(part).to(where, memory_format=torch.channels_last)
            return vae.encode(signal).latent_dist.mode().half().cpu()  # type: ignore[union-attr]

    cores = 1 if where.type == "cuda" else os.cpu_count() or 1
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as crew:
        return torch.cat(list(crew.map(some, pictures.split(AT_ONCE))))


def encode_web(vae: AutoencoderKL, drawn: list[Drawn], path: Path) -> Tensor:
    """VARIANTS of each picture -> latents (N, VARIANTS, 4, 16, 16), half precision; kept at `path` and read back."""
    if path.exists():
        return torch.load(path, weights_only=True)
    chance, found = draws(SEED, 0), []
    for i in range(VARIANTS):
        made = [shown(some, plan(len(some), chance), chance) for some in torch.stack([d.picture for d in drawn]).split(64)]
        found.append(encode(vae, torch.cat(made)))
        print(f"unet: variant {i + 1}/{VARIANTS} of {len(drawn)} pictures encoded", flush=True)
    torch.save(torch.stack(found, 1), path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    return torch.stack(found, 1)


def batch_at(step: int, count: int) -> Tensor:
    """The concepts of one step: each epoch is a seeded permutation, cut in batches."""
    per_epoch = count // BATCH
    epoch, place = divmod(step, per_epoch)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(SEED * 7919 + epoch))
    return shuffled[place * BATCH : (place + 1) * BATCH]


def times(chance: torch.Generator) -> Tensor:
    """One t of each of B slices of the schedule, most often about 620, where the motif is decided: (B,)."""
    even = (torch.randperm(BATCH, generator=chance) + torch.rand(BATCH, generator=chance)) / BATCH
    dense = even - 0.5 * torch.sin(2 * math.pi * (even - 0.62)) / (2 * math.pi)  # density 2 at 620, 2/3 at 120
    return (1000 * (dense % 1)).long().clamp(0, 999)


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """(tokens of each distinct text, which of them each text has): a text that comes twice is encoded once."""
    distinct = sorted(set(texts))
    tokens = tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens, torch.tensor([distinct.index(text) for text in texts])


def train_pair(
    latents: Tensor,
    drawn: list[Drawn],
    concepts: list[Concept],
    tokenizer: CLIPTokenizer,
    work: Path,
    keep: Callable[[Pair], None],
    start: Path | None = None,
    steps: int = STEPS,
) -> Pair:
    """Learns to denoise `latents` (N, variants, 4, 16, 16) of `drawn` given captions of `concepts`, from `start` or scratch.

    Calls `keep(mean)` now and then.
    """
    torch.manual_seed(SEED)
    where = device()
    pair = (Pair.read(start, tokenizer) if start else Pair(tokenizer)).to(where)
    pair.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = copy.deepcopy(pair).requires_grad_(False)
    schedule, hands = DDPMScheduler(**SCHEDULE), HandChooser(drawn)

    def loss_at(pair: Pair, step: int, part: int, parts: int) -> Tensor:
        chance = draws(SEED, step)
        chosen = batch_at(step, len(concepts))
        words = random.Random(SEED * 1_000_003 + step)
        texts = [caption(concepts[i], words) for i in chosen.tolist()]
        mine = slice(part, None, parts)
        tokens, which = tokens_of(tokenizer, texts[mine])
        t = times(chance)
        shows = hands.choose(chosen.tolist(), chance)
        x0 = latents[shows, torch.randint(latents.shape[1], (BATCH,), generator=chance)].float()
        eps = torch.randn(x0.shape, generator=chance)
        x_t = schedule.add_noise(x0, eps, t)[mine]  # type: ignore[arg-type]
        made = pair(x_t.to(where, memory_format=torch.channels_last), t[mine].to(where), tokens.to(where), which.to(where))
        return (made - eps[mine].to(where)).square().mean()

    train(pair, mean, loss_at, lambda: keep(mean), path=work / "unet.pt", steps=steps, peak=PEAK, longest=0.9995)
    return mean.eval()
