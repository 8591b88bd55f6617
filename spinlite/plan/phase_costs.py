"""What each phase of a round costs in memory and work, found by simulating the preset's real networks without data.

Pictures have the model's own size here. In a run they have many shapes, but none has more pixels (`data.buckets.Grid`), so none
takes more memory or time: activations grow with the pixels, and so does attention without a matrix of scores. Clips have the
model's own size and the most frames.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spinlite.config.settings import Settings
from spinlite.families.blank import with_random_weights
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.memory.device import Device, Levers
from spinlite.plan.simulation import META, SAMPLES, Cost, Simulation, simulate
from spinlite.training.batches import Batch
from spinlite.training.step import measure

PICTURES = 8  # encoded and decoded in a simulation; other numbers are scaled from it. Of clips one, since they go one by one
LATENTS = 8  # that a sampler holds per fake: state, noise, both guidance halves, predictions, a solver's earlier ones


@dataclass(frozen=True)
class Workload:
    """Other picture sizes than the preset's, and how many pictures are encoded and decoded at once."""

    latent_shape: tuple[int, ...]
    size: tuple[int, int]  # px
    pictures: int


@dataclass(frozen=True)
class Sizes:
    """What stays in memory for a whole phase, in bytes unless noted."""

    width: int  # px
    height: int
    weights: int  # of the network
    targets: int  # of the network's layers with a LoRA
    adapters: int  # both LoRA slots
    learnt: int  # numbers in the policy's LoRA
    states: int  # of the optimizer
    latent: int  # one, in fp32
    cond: int  # of one sample


class PhaseCosts:
    """Costs of a preset's networks in one precision. Each is simulated at first use, and kept in a file.

    Methods named after a phase return its peak, in bytes of tensors.
    """

    def __init__(
        self, settings: Settings, precision: str, quantize: str, cache: Path | None, name: str,
        workload: Workload | None = None,
    ) -> None:  # fmt: skip
        """Costs are kept as `name` in the folder `cache`; without one nothing is kept."""
        self._settings, self._workload = settings, workload
        self._levers = Levers(precision, quantize, encoders=settings.memory.encoders or "none")
        self._file = cache / f"{name}.json" if cache else None
        self._known: dict[str, Any] = json.loads(self._file.read_text()) if self._file and self._file.exists() else {}

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(**self._recall("sizes", lambda: asdict(self._sizes())))

    @property
    def net(self) -> int:
        """Bytes of the network with its LoRA slots, which always stay."""
        return self.sizes.weights + self.sizes.adapters

    def encoding(self) -> int:
        """Peak of encoding pictures, then captions. The VAE stays until both are done."""
        vae = sum(self.encode.kept)
        texts = 0 if self._levers.encoders == "cpu" else self.captions.peak(1)
        return self.net + max(self.encode.peak(1), vae + texts)

    def playing(self, fakes: int) -> int:
        """Peak of making so many fakes at once."""
        rows = fakes * (2 if self._settings.play.guidance > 1 else 1)
        return self.net + self.forward.peak(rows, (self.sizes.cond, 0)) + fakes * LATENTS * self.sizes.latent

    def measuring(self, samples: int) -> int:
        """Peak of measuring an error of so many samples at once."""
        return self.net + self.forward.peak(samples)

    def drawing(self) -> int:
        """Peak of decoding latents to pictures."""
        return self.net + self.decode.peak(1)

    def learning(self, policy: int, live: bool, levers: Levers, batch: int) -> int:
        """Peak of a step with so many `policy` errors per sample; `live`: with the opponent's too."""
        s, micro = self.sizes, levers.micro_batch or batch
        together = 1 if levers.one_graph else policy  # errors of a sample that go through the network in one batch
        rows = micro * together
        step = self.graph(levers.checkpointing).peak(rows)
        step = max(step, self.forward.peak(rows)) if live else step
        step += rows * (2 * s.latent + s.cond) if together > 1 else 0  # copies: real and fake one after the other
        gradients = 4 * s.learnt  # already there at the peak if an earlier graph ran its backward pass
        step = step + gradients if micro < batch or (levers.one_graph and policy > 1) else max(step, gradients)
        average = 4 * s.learnt if self._settings.learn.ema else 0
        return self.net + s.states + average + batch * (3 * s.latent + s.cond) + step

    @cached_property
    def encode(self) -> Cost:
        """Encoding pictures with the VAE."""
        return self._cost("encode", lambda: self._part_cost(lambda base, n: base.encode_pictures([self._picture()] * n)))

    @cached_property
    def captions(self) -> Cost:
        """Encoding as many captions with the text encoders."""
        return self._cost("captions", lambda: self._part_cost(lambda base, n: base.encode_captions([""] * n)))

    @cached_property
    def decode(self) -> Cost:
        """Decoding as many pictures with the VAE."""
        return self._cost("decode", lambda: self._part_cost(lambda base, n: base.decode(torch.empty((n, *base.latent_shape)))))

    @cached_property
    def forward(self) -> Cost:
        """One denoising error without a graph: a forward pass."""
        with torch.no_grad():
            return self._cost("forward", lambda: simulate(lambda: self._error("opponent_real")))

    def graph(self, checkpointing: bool) -> Cost:
        """One denoising error of the policy with its backward pass; gradients already exist."""
        return self._cost(f"graph{' checkpointed' * checkpointing}", lambda: self._graph(checkpointing))

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
        base = self._made[0]
        with torch.device(META), torch.no_grad(), Simulation(1):
            cond = base.encode_pictures([self._picture()]) | base.encode_captions([""])
            base.free()
            del cond["x0"]
            return {name: torch.empty((SAMPLES, *value.shape[1:]), dtype=value.dtype) for name, value in cond.items()}

    def _picture(self) -> Picture:
        base = self._made[0]
        image = Image.new("RGB", base.size)
        return Picture(image, base.size, (0, 0), (image,) * (base.clips.most - 1 if base.clips else 0))

    def _sizes(self) -> Sizes:
        base, slots, weights, adapters = self._made
        numbers = [p.numel() for p in slots.parameters()]
        states = sum(_state_bytes(self._settings.learn.optimizer, n) for n in numbers)
        cond = sum(value.numel() * value.element_size() for value in self._cond.values()) // SAMPLES
        latent = 4 * math.prod(base.latent_shape)
        return Sizes(*base.size, weights, slots.target_bytes, adapters, sum(numbers), states, latent, cond)

    def _part_cost(self, call: Callable[[Family, int], object]) -> Cost:
        """The cost of `call(family, n)`, with the part that it loads first (VAE or text encoders) as a fixed size."""
        base = self._made[0]

        def load() -> None:
            call(base, 1)

        with torch.device(META):
            part = sum(simulate(load, 1).kept)
            cost = simulate(lambda: call(base, self._workload.pictures if self._workload else at_once(base)), 1)
        base.free()
        return replace(cost, peaks=[(each, part + fixed) for each, fixed in cost.peaks], kept=(0, part + sum(cost.kept)))

    def _error(self, name: str) -> torch.Tensor:
        base, slots, _, _ = self._made
        with torch.device(META):
            latents = torch.empty((SAMPLES, *base.latent_shape))
            batch = Batch(latents, latents, latents, base.path.times(torch.empty(SAMPLES)), self._cond)
        return measure(base, slots, name, batch)

    def _graph(self, checkpointing: bool) -> Cost:
        base, slots, _, _ = self._made
        base.set_checkpointing(checkpointing)
        for parameter in slots.parameters():
            parameter.grad = torch.empty_like(parameter)
        return simulate(lambda: self._error("policy_real"), back=True)

    def _cost(self, name: str, make: Callable[[], Cost]) -> Cost:
        tree = self._recall(name, lambda: asdict(make()))
        return Cost([(a, b) for a, b in tree["peaks"]], tuple(tree["kept"]), [tuple(row) for row in tree["work"]])  # pyright: ignore

    def _recall(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self._known:
            assert self._cond  # builds the networks, which must exist before anything is counted
            self._known[name] = make()
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_text(json.dumps(self._known), encoding="utf-8")
        return self._known[name]


def at_once(base: Family) -> int:
    """How many pictures, or clips, a simulation encodes and decodes."""
    return 1 if base.clips else PICTURES


def _state_bytes(optimizer: str, numbers: int) -> int:
    """Bytes of optimizer state for a tensor. bitsandbytes: 32 bits below 4096 numbers, else 8 and a scale per 256."""
    match optimizer:
        case "adamw8bit":
            return 8 * numbers if numbers < 4096 else 2 * (numbers + 4 * math.ceil(numbers / 256))
        case "prodigy":
            return 16 * numbers
        case _:
            return 8 * numbers
