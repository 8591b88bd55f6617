"""The demo's VAE: 64x64 pictures to 16x16x4 latents and back, learnt from the free emoji of three hands.

Pictures are (B, 3, 64, 64), uint8 in the store and -1..1 in the network; latents are (B, 4, 16, 16).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .loop import device, draws, train

BATCH, STEPS, PEAK, SEED = 16, 1850, 1.5e-3, 1
KL, EDGES = 2e-4, 0.5


def new_vae() -> AutoencoderKL:
    """Two halvings, as little at full size as still draws clean edges."""
    settings: dict[str, Any] = {
        "block_out_channels": (32, 48, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 64,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**settings)


def to_signal(pictures: Tensor) -> Tensor:
    """uint8 -> -1..1."""
    return pictures.float() / 127.5 - 1


def vary(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Flips half of the batch, swaps the colours of a third, shifts all by up to 4 px: (B, 3, 64, 64) -> the same."""
    if torch.rand((), generator=chance) < 0.33:
        pictures = pictures[:, torch.randperm(3, generator=chance)]
    flip = (torch.rand(len(pictures), generator=chance) < 0.5)[:, None, None, None]
    pictures = torch.where(flip, pictures.flip(-1), pictures)
    down, right = torch.randint(-4, 5, (2,), generator=chance).tolist()
    return pictures.roll((down, right), (-2, -1))


def edge_error(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of the pictures' slopes along both axes."""
    wrong = made - real
    return wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()


def vae_loss(vae: AutoencoderKL, real: Tensor, eps: Tensor) -> Tensor:
    """Absolute and squared error, edges, and a KL small enough to only keep the latents in bounds."""
    posterior = vae.encode(real).latent_dist  # type: ignore[union-attr]
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    made = vae.decode(mean + eps * (0.5 * logvar).exp()).sample.float()  # type: ignore[union-attr]
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return F.l1_loss(made, real) + F.mse_loss(made, real) + EDGES * edge_error(made, real) + KL * kl


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean of the pictures' peak signal-to-noise ratios through the VAE, in decibel."""
    ratios = []
    for chunk in to_signal(pictures).to(device()).split(32):
        made = vae.decode(vae.encode(chunk).latent_dist.mode()).sample.clamp(-1, 1)  # type: ignore[union-attr]
        ratios.append(10 * (4 / (made - chunk).square().mean(dim=(1, 2, 3))).log10())
    return torch.cat(ratios).mean().item()


def train_vae(pictures: Tensor, held_out: dict[str, Tensor], work: Path, steps: int = STEPS) -> AutoencoderKL:
    """Learns from `pictures`, reports PSNR on each of `held_out`, returns the running mean of the weights."""
    torch.manual_seed(SEED)
    where = device()
    vae = new_vae().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = copy.deepcopy(vae).requires_grad_(False)

    def loss_at(vae: AutoencoderKL, step: int, part: int, parts: int) -> Tensor:
        chance = draws(SEED, step)
        chosen = torch.randint(len(pictures), (BATCH,), generator=chance)
        real = to_signal(vary(pictures[chosen], chance))[part::parts].to(where, memory_format=torch.channels_last)
        eps = torch.randn(BATCH, 4, 16, 16, generator=chance)[part::parts].to(where)
        with torch.autocast(where.type, torch.bfloat16):
            return vae_loss(vae, real, eps)

    def keep() -> None:
        mean.eval()
        print("vae: PSNR", {name: round(psnr(mean, some), 2) for name, some in held_out.items()}, flush=True)

    train(vae, mean, loss_at, keep, path=work / "vae.pt", steps=steps, peak=PEAK)
    return mean.eval()
