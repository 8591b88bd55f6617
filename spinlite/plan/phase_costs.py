"""What each phase of a round costs in memory and work, found by simulating the preset's real networks without data.

Pictures have the model's own size here. In a run they have many shapes, but none has more pixels (`data.buckets.Grid`), so none
takes more memory or time: activations grow with the pixels, and so does attention without a matrix of scores. Clips have the
model's own size and the most frames.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spinlite.config.settings import Play, Settings
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.memory.device import Device, Levers
from spinlite.plan.known import Known
from spinlite.plan.meta import META
from spinlite.plan.simulation import SAMPLES, Cost, Simulation, simulate, simulating
from spinlite.plan.sizes import Sizes, state_bytes
from spinlite.training.batches import Batch
from spinlite.training.play import count_steps
from spinlite.training.step import measure

PICTURES = 8  # encoded and decoded in a simulation; other numbers are scaled from it. Of clips one, since they go one by one
TAKE_NO_MEMORY = {"family", "alpha", "prediction", "zero_snr", "clip_skip", "max_tokens"}  # of the model's settings
LATENTS = 8  # that a sampler holds per fake: state, noise, both guidance halves, predictions, a solver's earlier ones


@dataclass(frozen=True)
class Workload:
    """Other picture sizes than the preset's, and how many pictures are encoded and decoded at once."""

    latent_shape: tuple[int, ...]
    size: tuple[int, int]  # px
    pictures: int


class PhaseCosts:
    """Costs of a preset's networks in one precision. Each is simulated at first use, and kept.

    Presets share what their texts, their pictures, and their steps take, as far as they are of the same kind and size. Methods
    named after a phase return its peak, in bytes of tensors.
    """

    def __init__(
        self, settings: Settings, precision: str, quantize: str, cache: Path | None, workload: Workload | None = None
    ) -> None:
        """Costs are kept in the folder `cache`; without one they are not."""
        self._settings, self._workload = settings, workload
        self._levers = Levers(precision, quantize, encoders=settings.memory.encoders or "none")
        model = with_random_weights(settings.model).model_dump(exclude=TAKE_NO_MEMORY)
        size = {name: model.pop(name) for name in ("resolution", "frames")}
        lora = {name: model.pop(name) for name in ("rank", "targets", "rslora", "dora")}
        kept = partial(Known, cache, model, precision, workload and asdict(workload))
        self._texts, self._pictures = kept("texts", self._levers.encoders), kept("pictures", size)
        self._network = kept("network", size, lora, quantize, settings.learn.optimizer)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(**self._network.recall("sizes", 1, lambda: self._tree(self._sizes)))

    @property
    def net(self) -> int:
        """Bytes of the network with its LoRA slots, which always stay."""
        return self.sizes.weights + self.sizes.adapters

    def encoding(self) -> int:
        """Peak of encoding pictures, then captions. The VAE stays until both are done."""
        vae = sum(self.encode.kept)
        texts = 0 if self._levers.encoders == "cpu" else self.captions.peak(1)
        return self.net + max(self.encode.peak(1), vae + texts)

    def playing(self, fakes: int, merge: bool = False, guidance: float | None = None) -> int:
        """Peak of making so many samples at once, fakes or others. If a LoRA is merged, the weights without it are kept too."""
        guidance = guidance or max(self._settings.play.guidance, self._settings.drawn.guidance)
        s, rows = self.sizes, fakes * (2 if guidance > 1 else 1)
        return self.net + s.targets * merge + self.forward(rows, merge).peak(rows, (s.cond, 0)) + fakes * LATENTS * s.latent

    def measuring(self, samples: int) -> int:
        """Peak of measuring an error of so many samples at once, the policy's too."""
        return self.net + self.sizes.cast + self.forward(samples).peak(samples)

    def drawing(self) -> int:
        """Peak of decoding latents to pictures."""
        return self.net + self.decode.peak(1)

    def learning(self, policy: int, live: bool, levers: Levers, batch: int) -> int:
        """Peak of a step with so many `policy` errors per sample; `live`: with the opponent's too."""
        s, micro = self.sizes, levers.micro_batch or batch
        together = 1 if levers.one_graph else policy  # errors of a sample that go through the network in one batch
        rows, copied = micro * together, together > 1
        step = self.graph(levers.checkpointing, rows).peak(rows, copied=copied)
        step = max(step, self.forward(rows).peak(rows, (0, s.cast), copied)) if live else step
        gradients = 4 * s.learnt  # already there at the peak if an earlier graph ran its backward pass
        step = step + gradients if micro < batch or (levers.one_graph and policy > 1) else max(step, gradients)
        average = 4 * s.learnt if self._settings.learn.ema else 0
        return self.net + s.states + average + batch * (3 * s.latent + s.cond) + step

    def steps(self, play: Play) -> int:
        """How many steps of the network a fake takes."""
        name = f"steps {play.sampler} {play.spacing} {play.steps} {play.eta} {play.start}"
        return self._network.recall(name, 1, lambda: count_steps(self._made[0], play))

    @cached_property
    def encode(self) -> Cost:
        """Encoding pictures with the VAE."""
        return self._cost(
            self._pictures, "encode", lambda: self._part_cost(lambda base, n: base.encode_pictures([self._picture()] * n))
        )

    @cached_property
    def captions(self) -> Cost:
        """Encoding as many captions with the text encoders."""
        return self._cost(self._texts, "captions", lambda: self._part_cost(lambda base, n: base.encode_captions([""] * n)))

    @cached_property
    def decode(self) -> Cost:
        """Decoding as many pictures with the VAE."""
        return self._cost(
            self._pictures, "decode", lambda: self._part_cost(lambda base, n: base.decode(torch.empty((n, *base.latent_shape))))
        )

    def forward(self, samples: int, merged: bool = False) -> Cost:
        """One denoising error without a graph: a forward pass; `merged`: by a LoRA that is in the base's weights already."""
        who = "base" if merged else "opponent"
        with torch.no_grad():
            return self._cost(self._network, f"forward of {who}", lambda: self._error_cost(f"{who}_real"), samples)

    def graph(self, checkpointing: bool, samples: int) -> Cost:
        """One denoising error of the policy with its backward pass; gradients already exist."""
        return self._cost(
            self._network, f"graph{' checkpointed' * checkpointing}", lambda: self._graph_cost(checkpointing), samples
        )

    @cached_property
    def _made(self) -> tuple[Family, Slots, int, int]:
        """(family, slots, bytes of the network, bytes of the slots)."""
        model = self._settings.model
        with torch.device(META), Simulation(1) as mode:
            base = load_family(with_random_weights(model), Device(META, "plan", self._levers))
            weights = mode.now[1]
            if self._workload:
                base.latent_shape, base.size = self._workload.latent_shape, self._workload.size
            slots = Slots(
                base.net, base.lora_targets[model.targets], model.rank, model.alpha or model.rank, 0, model.rslora, model.dora
            )
            return base, slots, weights, mode.now[1] - weights

    @cached_property
    def _cond(self) -> Cond:
        """The conditioning of a simulated batch, on the meta device."""
        of_pictures = self._pictures.recall(
            "cond", 1, lambda: self._shapes(lambda base: base.encode_pictures([self._picture()]))
        )
        shapes = of_pictures | self._texts.recall("cond", 1, lambda: self._shapes(lambda base: base.encode_captions([""])))
        return {
            name: torch.empty((SAMPLES, *shape), dtype=getattr(torch, dtype), device=META)
            for name, (shape, dtype) in shapes.items() if name != "x0"
        }  # fmt: skip

    def _shapes(self, encode: Callable[[Family], Cond]) -> dict[str, tuple[list[int], str]]:
        base = self._made[0]
        with torch.device(META), torch.no_grad(), Simulation(1):
            made = encode(base)
            base.free()
            return {name: (list(value.shape[1:]), str(value.dtype).removeprefix("torch.")) for name, value in made.items()}

    @cached_property
    def _latents(self) -> torch.Tensor:
        """The latents of a simulated batch, on the meta device."""
        return torch.empty((SAMPLES, *self._made[0].latent_shape), device=META)

    def _picture(self) -> Picture:
        base = self._made[0]
        image = Image.new("RGB", base.size)
        return Picture(image, base.size, (0, 0), (image,) * (base.clips.most - 1 if base.clips else 0))

    def _sizes(self) -> Sizes:
        base, slots, weights, adapters = self._made
        with Simulation(1) as mode, slots.use("policy"):
            cast = mode.now[1]
        numbers = [p.numel() for p in slots.parameters()]
        states = sum(state_bytes(self._settings.learn.optimizer, n) for n in numbers)
        cond = sum(value.numel() * value.element_size() for value in self._cond.values()) // SAMPLES
        latent = 4 * math.prod(base.latent_shape)
        frames = base.clips.most if base.clips else 0
        return Sizes(*base.size, frames, weights, slots.target_bytes, adapters, cast, sum(numbers), states, latent, cond)

    def _part_cost(self, call: Callable[[Family, int], object]) -> Cost:
        """The cost of `call(family, n)`, with the part that it loads first (VAE or text encoders) as a fixed size."""
        base = self._made[0]

        def load() -> None:
            call(base, 1)

        with torch.device(META):
            part = sum(simulate(load, 1).kept)
            cost = simulate(lambda: call(base, self._workload.pictures if self._workload else at_once(base)), 1)
        base.free()
        return replace(cost, peaks=[(0, part + fixed, 0) for _, fixed, _ in cost.peaks], kept=(0, part + sum(cost.kept)))

    def _error_cost(self, name: str) -> Cost:
        base, slots, _, _ = self._made
        with simulating() as mode, slots.use(name.partition("_")[0]):  # pyright: ignore[reportArgumentType]
            error = measure(base, slots, name, self._batch(mode))
            if error.requires_grad:
                error.sum().backward()
            return mode.cost()

    def _graph_cost(self, checkpointing: bool) -> Cost:
        base, slots, _, _ = self._made
        base.set_checkpointing(checkpointing)
        for parameter in slots.parameters():
            parameter.grad = torch.empty_like(parameter)
        return self._error_cost("policy_real")

    def _batch(self, mode: Simulation) -> Batch:
        """Samples to measure. Copies are the conditioning and, in place of fakes, what the network sees and should say."""
        base = self._made[0]
        with torch.device(META):
            t = base.path.times(torch.empty(SAMPLES))
            fake, cond = mode.copy(lambda: (
                torch.empty((2, *self._latents.shape)), {name: torch.empty_like(value) for name, value in self._cond.items()}
            ))  # fmt: skip
        return Batch(self._latents, fake, self._latents, t, cond)

    def _tree(self, make: Callable[[], Cost | Sizes]) -> dict[str, Any]:
        assert self._made and self._cond  # networks and samples must exist before anything is counted
        return asdict(make())

    def _cost(self, known: Known, name: str, make: Callable[[], Cost], samples: int = 1) -> Cost:
        tree = known.recall(name, samples, lambda: self._tree(make))
        return Cost([tuple(line) for line in tree["peaks"]], tuple(tree["kept"]), [tuple(row) for row in tree["work"]])  # pyright: ignore


def at_once(base: Family) -> int:
    """How many pictures, or clips, a simulation encodes and decodes."""
    return 1 if base.clips else PICTURES
