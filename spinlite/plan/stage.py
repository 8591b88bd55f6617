"""A preset's real networks without data, and what each part of a round costs on them.

Pictures are of the model's own size here. In a run they have many shapes, but none has more pixels (`data.Grid`), so that none
takes more memory or time: activations grow with the pixels, and attention without a matrix of scores does too.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spinlite.adapters import Slots
from spinlite.batches import Batch
from spinlite.config import Settings
from spinlite.device import Device, Levers
from spinlite.families import Cond, Family, Picture, family
from spinlite.families.blank import blank
from spinlite.learn import measure
from spinlite.plan.rehearsal import META, SAMPLES, Cost, Rehearsal, rehearse

PICTURES = 8  # that are encoded and decoded in a rehearsal: bytes and time are scaled to others


@dataclass(frozen=True)
class Sizes:
    """What stays for a whole phase, in bytes where nothing else is said."""

    width: int  # px
    height: int
    weights: int  # of the network
    adapters: int  # both LoRA slots
    learnt: int  # numbers in the policy's LoRA
    states: int  # of the optimizer
    latent: int  # one, in fp32
    cond: int  # of one sample


class Stage:
    """The networks of a preset in a precision. A part is rehearsed when it is first asked for, and kept in a file."""

    def __init__(self, settings: Settings, precision: str, quantize: str, shelf: Path | None, made_of: str) -> None:
        """`made_of` names the code and the settings; without a `shelf` nothing is kept."""
        self._settings, self._levers = settings, Levers(precision, quantize)
        self._file = shelf / f"{made_of}.json" if shelf else None
        self._known: dict[str, Any] = json.loads(self._file.read_text()) if self._file and self._file.exists() else {}

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(**self._recall("sizes", lambda: asdict(self._sizes())))

    @cached_property
    def encode(self) -> Cost:
        """PICTURES pictures, then as many captions, with the networks that do it."""
        return self._cost("encode", lambda: rehearse(self._encode, 1))

    @cached_property
    def decode(self) -> Cost:
        """PICTURES pictures of a sheet, with the VAE."""
        return self._cost("decode", lambda: rehearse(self._decode, 1))

    @cached_property
    def forward(self) -> Cost:
        """A denoising error without a graph: each sample goes through the network once."""
        with torch.no_grad():
            return self._cost("forward", lambda: rehearse(lambda: self._error("opponent_real")))

    def graph(self, checkpointing: bool) -> Cost:
        """A denoising error of the policy and the way back from it, its gradients being there before."""
        return self._cost(f"graph{' checkpointed' * checkpointing}", lambda: self._graph(checkpointing))

    @cached_property
    def _made(self) -> tuple[Family, Slots, int, int]:
        """The family, the slots, and their bytes."""
        model = self._settings.model
        with torch.device(META), Rehearsal(1) as mode:
            base = family(blank(model), Device(META, "plan", self._levers))
            weights = mode.now[1]
            slots = Slots(
                base.net, base.lora_targets[model.targets], model.rank, model.alpha or model.rank, 0, model.rslora, model.dora
            )
            return base, slots, weights, mode.now[1] - weights

    @cached_property
    def _cond(self) -> Cond:
        """The conditioning of a rehearsed batch, without numbers."""
        base = self._made[0]
        with torch.device(META), torch.no_grad(), Rehearsal(1):
            found = base.encode([self._picture()]) | base.prompt([""])
            base.free()
            del found["x0"]
            return {name: torch.empty((SAMPLES, *value.shape[1:]), dtype=value.dtype) for name, value in found.items()}

    def _picture(self) -> Picture:
        size = self._made[0].size
        return Picture(Image.new("RGB", size), size, (0, 0))

    def _sizes(self) -> Sizes:
        base, slots, weights, adapters = self._made
        numbers = [p.numel() for p in slots.parameters()]
        states = sum(_state_bytes(self._settings.learn.optimizer, n) for n in numbers)
        cond = sum(value.numel() * value.element_size() for value in self._cond.values()) // SAMPLES
        return Sizes(*base.size, weights, adapters, sum(numbers), states, 4 * math.prod(base.latent_shape), cond)

    def _encode(self) -> None:
        base = self._made[0]
        with torch.device(META):
            base.encode([self._picture()] * PICTURES)
            base.prompt([""] * PICTURES)
        base.free()

    def _decode(self) -> None:
        base = self._made[0]
        with torch.device(META):
            try:
                base.decode(torch.empty((PICTURES, *base.latent_shape)))
            finally:
                base.free()

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
        return rehearse(lambda: self._error("policy_real"), back=True)

    def _cost(self, name: str, make: Callable[[], Cost]) -> Cost:
        found = self._recall(name, lambda: asdict(make()))
        return Cost([(a, b) for a, b in found["peaks"]], tuple(found["kept"]), [tuple(row) for row in found["work"]])  # pyright: ignore

    def _recall(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self._known:
            assert self._cond  # made here: the networks have to stand before anything is counted
            self._known[name] = make()
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_text(json.dumps(self._known), encoding="utf-8")
        return self._known[name]


def _state_bytes(optimizer: str, numbers: int) -> int:
    """What an optimizer keeps of a tensor: bitsandbytes leaves those below 4096 numbers in 32 bits, and others have a scale for
    each 256."""
    match optimizer:
        case "adamw8bit":
            return 8 * numbers if numbers < 4096 else 2 * (numbers + 4 * math.ceil(numbers / 256))
        case "prodigy":
            return 16 * numbers
        case _:
            return 8 * numbers
