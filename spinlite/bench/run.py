"""A preset's phases and the ways of learning, run and measured on this device."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from PIL import Image
from torch import nn

from spinlite.adapters import Slots
from spinlite.batches import Batch
from spinlite.bench.turns import Call, Row, turns
from spinlite.bench.ways import Ways, states, weights
from spinlite.config import Settings
from spinlite.device import Device, choose
from spinlite.families import Family, Picture, family
from spinlite.learn import asked, measure, step
from spinlite.maths.draws import gaussian
from spinlite.play import sample

SAMPLER_STEPS = 3  # of a fake that are run; time and work are scaled to all of them
WORK = 50  # forwards: about what one turn of everything costs
SMALLEST = 8  # side of the latents below which nothing is halved
CAPTION = "a photograph of a lighthouse in a storm"


@dataclass(frozen=True)
class Figures:
    """What was measured, and on what. Sizes in pixels (width, height)."""

    title: str
    device: str
    size: tuple[int, int]
    real_size: tuple[int, int]  # the preset's
    samples: int  # at once while learning
    batch: int  # an update's, the preset's
    limit: float | None  # GB that a larger card was held to
    levers: dict[str, Any]
    left_out: list[str]
    phases: list[Row]
    ways: list[Row]


def bench(settings: Settings, steps: int, seconds: float, progress: Callable[[int, int], None]) -> Figures:
    """Run every phase and way `steps` times, after once to warm up and once to meter.

    On a CUDA card at the preset's own size, batch and memory. Elsewhere the batch, then the pictures, are halved until it all
    fits into about `seconds`.
    """
    where = choose(settings.memory)
    limit = _limit(settings, where.device)
    base = family(settings.model, where)
    rival = copy.deepcopy(base.net).to("cpu") if _room_for_two(base.net) else None
    slots = Slots(
        base.net, base.lora_targets[settings.model.targets], settings.model.rank, settings.model.alpha or settings.model.rank,
        settings.run.seed, settings.model.rslora, settings.model.dora,
    )  # fmt: skip
    samples, shape, left_out = _size(base, settings, where, steps, seconds)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        progress(done, (steps + 2) * (10 if rival else 9))

    def measured(calls: list[Call]) -> list[Row]:
        return turns(calls, steps, where.device, lambda: weights(base.net), told)

    rehearsal = Rehearsal(base, slots, settings, where, samples, shape)
    phases = measured([rehearsal.encode()])
    batch = rehearsal.batch()
    base.free()
    for call in (rehearsal.play(batch), rehearsal.learn(batch), rehearsal.judge(batch)):
        phases += measured([call])
    if rival is None:
        left_out.append("the plain way: this computer has no room for a second network")
    ways = measured(Ways(base, slots, rehearsal.optimizer(), batch, rival).calls())
    return Figures(
        base.title, str(where), rehearsal.size, base.size, samples, settings.learn.batch, limit, asdict(where.levers), left_out,
        phases, ways,
    )  # fmt: skip


@dataclass(frozen=True)
class Rehearsal:
    """The phases of a round on random pictures: latents of `shape`, `samples` of them while learning."""

    family: Family
    slots: Slots
    settings: Settings
    where: Device
    samples: int
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, in pixels."""
        if self.shape == self.family.latent_shape:
            return self.family.size
        factor = self.family.size[0] // self.family.latent_shape[-1]
        return self.shape[-1] * factor, self.shape[-2] * factor

    def optimizer(self) -> torch.optim.Optimizer:
        """The preset's, at a rate that changes nothing that matters here."""
        return self.where.optimizer(self.settings.learn.optimizer, self.slots.parameters(), 1e-6)

    def encode(self) -> Call:
        """One picture and one caption, to what is learned from. The network is on the device meanwhile, as in a run."""

        def encode() -> None:
            self.family.encode([self._picture()])
            self.family.prompt([CAPTION])

        return Call("encode", "image", 1, encode)

    def batch(self) -> Batch:
        """Random pairs with conditioning, on the device."""
        device = self.where.device
        real, fake, eps = (gaussian((self.samples, *self.shape), "bench", name).to(device) for name in ("real", "fake", "eps"))
        t = self.family.path.times((torch.arange(self.samples) + 0.5) / self.samples).to(device)
        cond = self.family.prompt([CAPTION]) | self.family.encode([self._picture()])
        del cond["x0"]
        rows = {name: value.expand(self.samples, *value.shape[1:]).contiguous().to(device) for name, value in cond.items()}
        return Batch(real, fake, eps, t, rows)

    def play(self, batch: Batch) -> Call:
        """Fakes by the opponent: a few of the solver's steps."""
        count = min(self.where.levers.play_batch, self.samples)
        cond = {name: value[:count] for name, value in batch.cond.items()}
        short = self.settings.play.model_copy(update={"steps": min(SAMPLER_STEPS, self.settings.play.steps)})
        noise = gaussian((count, *self.shape), "bench", "play")

        def play() -> None:
            with self.slots.use("opponent"):
                sample(self.family, noise, cond, cond, short)

        return Call("play", "fake", count, play, scale=self.settings.play.steps / short.steps)

    def learn(self, batch: Batch) -> Call:
        """An update by the preset's method, levers and optimizer."""
        levers, method, optimizer = self.where.levers, self.settings.build_method(), self.optimizer()
        ahead = [name for name in asked(method) if not name.startswith("policy")] if levers.cache_opponent else []
        with torch.no_grad():
            known = {name: measure(self.family, self.slots, name, batch) for name in ahead}

        def update() -> None:
            optimizer.zero_grad(set_to_none=True)
            step(self.family, self.slots, method, replace(batch, known=known), levers.one_graph)
            optimizer.step()

        unit = "pair" if "policy_fake" in asked(method) else "image"
        return Call("learn", unit, self.samples, update, held=lambda: states(optimizer))

    def judge(self, batch: Batch) -> Call:
        """The five errors of one draw of held-out pairs."""
        some = next(batch.parts(self.where.levers.play_batch))

        @torch.no_grad()
        def judge() -> None:
            for name in ("policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"):
                measure(self.family, self.slots, name, some)

        return Call("judge", "draw", len(some.t), judge)

    def _picture(self) -> Picture:
        return Picture(Image.effect_noise(self.size, 80).convert("RGB"), self.size, (0, 0))


def _size(
    base: Family, settings: Settings, where: Device, steps: int, seconds: float
) -> tuple[int, tuple[int, ...], list[str]]:
    """(samples at once, shape of a latent, what differs from the preset): its own on a GPU, what time allows elsewhere."""
    wanted = min(where.levers.micro_batch or settings.learn.batch, settings.learn.batch)
    samples, shape = wanted, base.latent_shape
    if where.device.type == "cuda" or len(shape) < 3:
        return samples, shape, []
    while _forward(base, shape, samples) * WORK * (steps + 2) > seconds:
        if samples > 1:
            samples //= 2
        elif shape[-1] > SMALLEST:
            shape = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
        else:
            break
    left_out = []
    if samples < wanted:
        left_out.append(f"{wanted} samples at once, as the preset has it: {samples} here, for time")
    if shape != base.latent_shape:
        width, height = base.size
        left_out.append(f"pictures of {width}x{height} px, as the preset has it: smaller here, for time (--seconds)")
    return samples, shape, left_out


@torch.no_grad()
def _forward(base: Family, shape: tuple[int, ...], samples: int) -> float:
    """Seconds of a forward: the shorter of two."""
    x, t = gaussian((samples, *shape), "bench", "forward"), base.path.times(torch.full((samples,), 0.5))
    cond = base.prompt([CAPTION] * samples)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        base.denoise(x, t, cond)
        times.append(time.perf_counter() - start)
    return min(times)


def _room_for_two(net: nn.Module) -> bool:
    """Whether the computer's memory holds a copy of a network, and half as much again to work with."""
    return psutil.virtual_memory().available > 1.5 * sum(w.numel() * w.element_size() for w in weights(net))


def _limit(settings: Settings, device: torch.device) -> float | None:
    """Hold a CUDA card to the memory that the preset is made for; returns it in GB where that is less than there is."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    wanted = (settings.memory.vram or 0) * 2**30
    if not 0 < wanted < total:
        return None
    torch.cuda.set_per_process_memory_fraction(wanted / total, device)
    return settings.memory.vram
