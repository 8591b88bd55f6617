"""Estimates how long a round takes on this computer, from a few timed calls."""

import time
from collections.abc import Callable

import torch

from spinlite.config.settings import Settings
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import gaussian
from spinlite.memory.device import Levers
from spinlite.methods.registry import Method
from spinlite.training.batches import Batch, place
from spinlite.training.play import count_steps
from spinlite.training.step import step

FEW = 5


def expected_seconds(
    family: Family, slots: Slots, method: Method, settings: Settings, levers: Levers, train: int, heldout: int
) -> float:
    """Seconds of one round, from one forward pass and one training step timed here.

    Forward passes: play has train x the steps of a fake (twice as many with guidance, none if the method does not play); judge
    has heldout x (as many per picture + 5 errors x draws). Learn has learn.updates steps.
    """
    device = next(family.net.parameters()).device
    size = settings.learn.batch
    x = gaussian((size, *family.latent_shape), "plan").to(device)
    u = (torch.arange(size) + 0.5) / size
    one = place(family.encode_captions([""]), device)
    family.free()
    batch = Batch(x, x, x, family.path.times(u).to(device), {k: v.expand(size, *v.shape[1:]) for k, v in one.items()})

    family.set_checkpointing(levers.checkpointing)

    def learn() -> None:
        step(family, slots, method, batch, levers.one_graph, levers.micro_batch)
        for parameter in slots.parameters():
            parameter.grad = None

    part = next(batch.parts(levers.micro_batch or size))

    def forward() -> None:
        with torch.no_grad():
            family.denoise(part.real, part.t, part.cond)

    one_forward, one_step = _timed(forward, device) / len(part.t), _timed(learn, device)
    passes = [count_steps(family, play) * (2 if play.guidance > 1 else 1) for play in (settings.play, settings.drawn)]
    play = train * passes[0] if method.fakes == "played" else 0
    judge = heldout * (passes[1] + 5 * settings.judge.draws)
    return (play + judge) * one_forward + settings.learn.length * one_step


def _timed(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call: the shortest of a few, or of those that fit into half a second if these are fewer, after a warm-up."""
    times: list[float] = []
    call()
    while len(times) < FEW and sum(times) < 0.5:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
