"""The phases of a round on random pictures, each as what is to be run and what it should take."""

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
from spinlite.training.play import sample
from spinlite.training.step import measure, required_errors, step

SAMPLER_STEPS = 3  # of a fake that are run; time and work are scaled to all of them
CAPTION = "a photograph of a lighthouse in a storm"


@dataclass(frozen=True)
class PhaseCalls:
    """The phases of a round on random pictures, `samples` of them while learning; `stage` knows what each should take."""

    family: Family
    slots: Slots
    settings: Settings
    where: Device
    samples: int
    cut: Workload
    stage: PhaseCosts

    def optimizer(self) -> torch.optim.Optimizer:
        """The preset's, at a rate that changes nothing that matters here."""
        return self.where.optimizer(self.settings.learn.optimizer, self.slots.parameters(), 1e-6)

    def encode(self) -> Call:
        """Pictures to latents. The network is on the device meanwhile, as in a run."""
        pictures = [self._picture()] * self.cut.pictures
        planned = self.stage.net + self.stage.encode.peak(1)
        return self._coding("encode", "image", planned, lambda n: self.family.encode_pictures(pictures[:n]))

    def captions(self) -> Call:
        """Captions to conditioning."""
        words = [CAPTION] * self.cut.pictures
        planned = self.stage.net + self.stage.captions.peak(1)
        return self._coding("captions", "caption", planned, lambda n: self.family.encode_captions(words[:n]))

    def sheet(self, batch: Batch) -> Call:
        """Latents to pictures to look at."""
        latents = batch.real[:1].cpu().expand(self.cut.pictures, *self.cut.latent_shape)
        return self._coding("sheet", "image", self.stage.drawing(), lambda n: self.family.decode(latents[:n]))

    def _coding(self, name: str, unit: str, planned: int, code: Callable[[int], object]) -> Call:
        """`code(n)` on so many, with a part that comes for that alone: to load it takes no part in the time."""

        part: list[Tensor] = []

        @contextlib.contextmanager
        def there() -> Iterator[None]:
            before = {id(tensor) for tensor in _tensors()}
            code(1)
            part[:] = [tensor for tensor in _tensors() if id(tensor) not in before]
            yield
            part.clear()
            self.family.free()

        count = self.cut.pictures
        return Call(name, unit, count, lambda: code(count), held=lambda: part, planned=planned, around=there)

    def batch(self) -> Batch:
        """Random pairs with conditioning, on the device."""
        device = self.where.device
        shape = (self.samples, *self.cut.latent_shape)
        real, fake, eps = (gaussian(shape, "bench", name).to(device) for name in ("real", "fake", "eps"))
        t = self.family.path.times((torch.arange(self.samples) + 0.5) / self.samples).to(device)
        cond = self.family.encode_captions([CAPTION]) | self.family.encode_pictures([self._picture()])
        del cond["x0"]
        rows = {name: value.expand(self.samples, *value.shape[1:]).contiguous().to(device) for name, value in cond.items()}
        return Batch(real, fake, eps, t, rows)

    def play(self, batch: Batch) -> Call:
        """Fakes by the opponent: a few of the solver's steps."""
        most = self.where.levers.play_batch
        count = most if self.where.device.type == "cuda" else min(most, self.samples)
        cond = {name: value[:1].expand(count, *value.shape[1:]) for name, value in batch.cond.items()}
        short = self.settings.play.model_copy(update={"steps": min(SAMPLER_STEPS, self.settings.play.steps)})
        noise = gaussian((count, *self.cut.latent_shape), "bench", "play")

        def play() -> None:
            with self.slots.use("opponent"):
                sample(self.family, noise, cond, cond, short)

        scale = self.settings.play.steps / short.steps
        return Call("play", "fake", count, play, scale=scale, planned=self.stage.playing(count))

    def learn(self, batch: Batch) -> Call:
        """An update by the preset's method, levers and optimizer."""
        levers, method, optimizer = self.where.levers, self.settings.build_method(), self.optimizer()
        ahead = [name for name in required_errors(method) if not name.startswith("policy")] if levers.cache_opponent else []
        with torch.no_grad():
            known = {name: measure(self.family, self.slots, name, batch) for name in ahead}

        def update() -> None:
            optimizer.zero_grad(set_to_none=True)
            step(self.family, self.slots, method, replace(batch, known=known), levers.one_graph)
            optimizer.step()

        names = required_errors(method)
        unit, mine = "pair" if "policy_fake" in names else "image", sum(name.startswith("policy") for name in names)
        planned = self.stage.learning(mine, len(names) > mine and not ahead, replace(levers, micro_batch=None), self.samples)
        return Call("learn", unit, self.samples, update, held=lambda: states(optimizer), planned=planned)

    def judge(self, batch: Batch) -> Call:
        """The five errors of one draw of held-out pairs."""
        some = next(batch.parts(self.where.levers.play_batch))

        @torch.no_grad()
        def judge() -> None:
            for name in ("policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"):
                measure(self.family, self.slots, name, some)

        return Call("judge", "draw", len(some.t), judge, planned=self.stage.measuring(len(some.t)))

    def _picture(self) -> Picture:
        size = self.cut.size
        return Picture(Image.effect_noise(size, 80).convert("RGB"), size, (0, 0))


def _tensors() -> list[Tensor]:
    """All there are."""
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
