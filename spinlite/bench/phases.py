"""The phases of a round on random pictures, each as a call to measure, with its planned peak."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor, nn

from spinlite.bench.turns import Call
from spinlite.bench.ways import states
from spinlite.config.settings import Settings
from spinlite.families.family import Family, Picture
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import gaussian
from spinlite.memory.device import Device
from spinlite.plan.phase_costs import PhaseCosts, Workload
from spinlite.training.batches import Batch
from spinlite.training.play import count_steps, sample
from spinlite.training.step import measure, required_errors, step

SAMPLER_STEPS = 3  # sampling steps that are run of a fake; time and work are scaled up to all of them
CAPTION = "a photograph of a lighthouse in a storm"


@dataclass(frozen=True)
class PhaseCalls:
    """The phases of a round on random pictures, with `samples` per step while learning. `costs` knows their planned peaks."""

    family: Family
    slots: Slots
    settings: Settings
    where: Device
    samples: int
    workload: Workload
    costs: PhaseCosts

    def optimizer(self) -> torch.optim.Optimizer:
        """The preset's optimizer, with a learning rate so small that it changes nothing here."""
        return self.where.optimizer(self.settings.learn.optimizer, self.slots.parameters(), 1e-6)

    def encode(self) -> Call:
        """Encode pictures to latents, with the network on the device, as in a run."""
        pictures = [self._picture()] * self.workload.pictures
        planned = self.costs.net + self.costs.encode.peak(1)
        return self._coding("encode", "image", planned, lambda n: self.family.encode_pictures(pictures[:n]))

    def captions(self) -> Call:
        """Encode captions to conditioning."""
        words = [CAPTION] * self.workload.pictures
        planned = self.costs.net + self.costs.captions.peak(1)
        return self._coding("captions", "caption", planned, lambda n: self.family.encode_captions(words[:n]))

    def sheet(self, batch: Batch) -> Call:
        """Decode latents to the pictures of a sample sheet."""
        latents = batch.real[:1].cpu().expand(self.workload.pictures, *self.workload.latent_shape)
        return self._coding("sheet", "image", self.costs.drawing(), lambda n: self.family.decode(latents[:n]))

    def _coding(self, name: str, unit: str, planned: int, code: Callable[[int], object]) -> Call:
        """A call of `code(n)`. The part of the model that only it needs is loaded before, so that loading does not count."""
        part: list[Tensor] = []

        @contextlib.contextmanager
        def loaded() -> Iterator[None]:
            before = {id(tensor) for tensor in _tensors()}
            code(1)
            part[:] = [tensor for tensor in _tensors() if id(tensor) not in before]
            yield
            part.clear()
            self.family.free()

        count = self.workload.pictures
        return Call(name, unit, count, lambda: code(count), held=lambda: part, planned=planned, around=loaded)

    def batch(self) -> Batch:
        """A batch of random pairs with conditioning, on the device."""
        device = self.where.device
        shape = (self.samples, *self.workload.latent_shape)
        real, fake, eps = (gaussian(shape, "bench", name).to(device) for name in ("real", "fake", "eps"))
        t = self.family.path.times((torch.arange(self.samples) + 0.5) / self.samples).to(device)
        cond = self.family.encode_captions([CAPTION]) | self.family.encode_pictures([self._picture()])
        del cond["x0"]
        rows = {name: value.expand(self.samples, *value.shape[1:]).contiguous().to(device) for name, value in cond.items()}
        return Batch(real, fake, eps, t, rows)

    def play(self, batch: Batch) -> Call:
        """Let the opponent make fakes, with a few of the sampling steps."""
        most = self.where.levers.play_batch
        count = most if self.where.device.type == "cuda" else min(most, self.samples)
        cond = {name: value[:1].expand(count, *value.shape[1:]) for name, value in batch.cond.items()}
        steps = count_steps(self.family, self.settings.play, self.workload.latent_shape)
        short = self.settings.play.model_copy(update={"steps": min(SAMPLER_STEPS, steps), "start": 1.0})
        noise = gaussian((count, *self.workload.latent_shape), "bench", "play")

        scale, planned = steps / short.steps, self.costs.playing(count, guidance=short.guidance)
        run = lambda: sample(self.family, noise, cond, cond, short)  # noqa: E731
        return Call("play", "fake", count, run, scale=scale, planned=planned, around=self.as_opponent)

    def as_opponent(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the network is the opponent; its LoRA is merged before, where a run would merge it."""
        return (self.slots.merged if self.where.levers.merge else self.slots.use)("opponent")

    def learn(self, batch: Batch) -> Call:
        """One update with the preset's method, memory settings and optimizer."""
        levers, method, optimizer = self.where.levers, self.settings.build_method(), self.optimizer()
        first = [name for name in required_errors(method) if not name.startswith("policy")] if levers.cache_opponent else []
        with torch.no_grad():
            known = {name: measure(self.family, self.slots, name, batch) for name in first}

        def update() -> None:
            optimizer.zero_grad(set_to_none=True)
            step(self.family, self.slots, method, replace(batch, known=known), levers.one_graph)
            optimizer.step()

        names = required_errors(method)
        unit, policy = "pair" if "policy_fake" in names else "image", sum(name.startswith("policy") for name in names)
        live = len(names) > policy and not first
        planned = self.costs.learning(policy, live, replace(levers, micro_batch=None), self.samples)
        return Call("learn", unit, self.samples, update, held=lambda: states(optimizer), planned=planned)

    def judge(self, batch: Batch) -> Call:
        """Measure the five errors of one draw on held-out pairs."""
        some = next(batch.parts(self.where.levers.play_batch))

        @torch.no_grad()
        def judge() -> None:
            for name in ("policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"):
                measure(self.family, self.slots, name, some)

        return Call("judge", "draw", len(some.t), judge, planned=self.costs.measuring(len(some.t)))

    def _picture(self) -> Picture:
        size, clips = self.workload.size, self.family.clips
        image = Image.effect_noise(size, 80).convert("RGB")
        return Picture(image, size, (0, 0), (image,) * (clips.most - 1 if clips else 0))


def _tensors() -> list[Tensor]:
    """All tensors that are alive."""
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
