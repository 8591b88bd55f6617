"""Trains the classifier that tells the look of the demo's pictures: Fluent 3D, clean on white, from the rest of the mixed web.

It learns from things that neither `fluent/` nor `judge/` shows, and is measured on the things of `judge/`, which it never
saw by any hand. All pictures go through the VAE, with a little noise on their latents while it learns: samples are never as
sharp as pictures.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from spinlite.evaluate.kid import FEATURES
from spinlite.evaluate.look import Look, head, styles

from .loop import draws
from .unet import encode
from .web import STAGES, Drawn, plan, shown

SEED, STEPS, BATCH, RATE = 5, 3000, 256, 1e-3
WANTED = "Fluent 3D"
SPOILT, NOISE = 2, 0.12  # variants of each drawing that are not clean; noise on latents of unit deviation
CLEAN_OF = {WANTED: 2}  # variants that are clean: of other hands 1


@dataclass(frozen=True)
class Lesson:
    """What is seen of pictures (n, S), and whether each has the look (n,)."""

    pictures: Tensor
    wanted: Tensor


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: Tensor, noise: float, chance: torch.Generator) -> Tensor:
    """Pictures (n, 3, 64, 64) uint8 through the VAE -> what is seen of them (n, S)."""
    latents = encode(vae, pictures).float()
    latents += noise / vae.config["scaling_factor"] * torch.randn(latents.shape, generator=chance)
    made = [vae.decode(some).sample for some in latents.split(16)]  # type: ignore[union-attr]
    return styles(VaeImageProcessor().postprocess(torch.cat(made), output_type="pil"))  # type: ignore[arg-type]


def lesson(vae: AutoencoderKL, drawn: list[Drawn], noise: float, seed: int) -> Lesson:
    """Every drawing, clean and spoilt."""
    chance, clean = draws(SEED, seed), dict.fromkeys(STAGES, "")
    rows = [(one, True) for one in drawn for _ in range(CLEAN_OF.get(one.hand, 1))]
    rows += [(one, False) for one in drawn for _ in range(SPOILT)]
    spoilt = [row for row in plan(3 * len(rows), chance) if any(row.values())]
    plans = [clean if good else spoilt[i] for i, (_, good) in enumerate(rows)]
    pictures = torch.stack([one.picture for one, _ in rows])
    web = torch.cat([shown(pictures[i : i + 64], plans[i : i + 64], chance) for i in range(0, len(rows), 64)])
    wanted = torch.tensor([good and one.hand == WANTED for one, good in rows])
    return Lesson(through(vae, web, noise, chance), wanted)


def fit(known: Lesson, steps: int = STEPS) -> torch.nn.Module:
    """A classifier; every batch is half of either class, and its figures are shaken by a fifth of their deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net, chance = head().train(), draws(SEED, 0)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.1)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        seen = known.pictures[:, FEATURES:]
        sides = [seen[known.wanted], seen[~known.wanted]]
        shake, truth = 0.2 * seen.std(0), torch.tensor([0.95, 0.05]).repeat_interleave(BATCH // 2)
        for _ in range(steps):
            batch = torch.cat([side[torch.randint(len(side), (BATCH // 2,), generator=chance)] for side in sides])
            batch = batch + shake * torch.randn(batch.shape, generator=chance)
            loss = F.binary_cross_entropy_with_logits(net(batch).squeeze(1), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return net.eval()


def accuracy(look: Look, others: Lesson) -> tuple[float, float]:
    """(share of pictures with the look that are told, share of those without)."""
    right = look.score(others.pictures).bool() == others.wanted
    return right[others.wanted].double().mean().item(), right[~others.wanted].double().mean().item()


def train(vae: AutoencoderKL, known: list[Drawn], others: list[Drawn], path: Path) -> Look:
    """Learns from drawings, is measured on drawings of other things, and is kept with the mean of both shares."""
    net = fit(lesson(vae, known, NOISE, 1))
    measured = lesson(vae, others, 0.0, 2)
    yes, no = accuracy(Look(net, 0.0), measured)
    look = Look(net, (yes + no) / 2)
    look.save(path)
    print(f"look: tells {yes:.1%} of pictures with the look and {no:.1%} of those without, of things it never saw", flush=True)
    return look
