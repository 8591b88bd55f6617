"""The opponent's samples, as latents: no VAE, and every one a function of its own seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spinlite.config import Play
from spinlite.data import Encoded, Progress, Record, chunks
from spinlite.families import Cond, Family
from spinlite.maths.draws import gaussian
from spinlite.store import Store, fingerprint


def play(
    family: Family, encoded: Encoded, records: Sequence[Record], settings: Play, batch: int, store: Store,
    progress: Progress, *names: int | str,
) -> None:  # fmt: skip
    """One fake for each record's caption, in the store under `fake_key`; those that are there are passed over.

    The noise of a fake is a function of `names` and the record's key. `batch` of them are made at once.

    Batches are the same runs of `records` however often it was interrupted, so that a resumed round has the same bits.
    The network plays as whoever is active.
    """
    for done, chunk in enumerate(chunks(records, batch)):
        if any(fake_key(r) not in store for r in chunk):
            noise = torch.stack([gaussian(family.latent_shape, "play", *names, r.key) for r in chunk])
            fakes = sample(family, noise, encoded.cond(chunk), encoded.cond(chunk, [True] * len(chunk)), settings)
            store.add([fake_key(r) for r in chunk], {"x0": fakes})
        progress(min((done + 1) * batch, len(records)), len(records))


def fake_key(record: Record) -> str:
    """What a fake is kept under: its picture and its caption, since both say what was drawn."""
    return fingerprint(record.key, record.caption)


@torch.no_grad()
def sample(family: Family, noise: Tensor, cond: Cond, empty: Cond, settings: Play) -> Tensor:
    """Latents (B, ...) on the CPU, in fp32, from unit noise (B, ...), with classifier-free guidance where it is > 1.

    Guidance (Ho & Salimans 2022, arXiv 2207.12598): prediction = empty + guidance (cond - empty); both halves are one batch.
    """
    device = next(family.net.parameters()).device
    scheduler = family.sampler(settings.sampler)
    scheduler.set_timesteps(settings.steps, device=device)
    guided = settings.guidance > 1
    both = {name: torch.cat([empty[name], cond[name]]) if guided else cond[name] for name in cond}
    both = {name: value.to(device) for name, value in both.items()}
    x = noise.to(device) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        rows = torch.cat([scaled, scaled]) if guided else scaled
        t = (timestep / family.path.timestep_scale).expand(len(rows))
        prediction = family.denoise(rows, t, both).float()
        if guided:
            without, with_caption = prediction.chunk(2)
            prediction = without + settings.guidance * (with_caption - without)
        x = scheduler.step(prediction, timestep, x).prev_sample
    return x.float().cpu()
