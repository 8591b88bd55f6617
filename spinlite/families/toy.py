"""A toy family: points in the plane on a flow path. The whole pipeline takes a second.

A picture stands for the point (mean red, mean blue) in [-1, 1]. A caption becomes counts of its words, by hash. With a base
such as "clips-0" it makes small clips instead (`toy_clips.py`).
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families import toy_clips
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.names import module_shapes
from spinlite.families.picture import ClipRule, Drawn, with_frames
from spinlite.lora.apply import applied
from spinlite.lora.layouts import Layout
from spinlite.lora.read import read_lora_for
from spinlite.lora.tensors import Pair
from spinlite.maths.paths import Path
from spinlite.memory.device import Device
from spinlite.memory.quantized import place_network
from spinlite.runs.files import fingerprint
from spinlite.runs.store import read_tensors

CLIPS = "clips-"  # in front of a base's number
WIDTH = 16  # numbers in a caption's conditioning


class Net(nn.Module):
    """An MLP on (point, time, caption). model.base is the seed of its weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(2 + 1 + WIDTH, 64)
            self.second = nn.Linear(64, 64)
            self.last = nn.Linear(64, 2)
        self.checkpointing = False

    def forward(self, x_t: Tensor, t: Tensor, words: Tensor) -> Tensor:
        inputs = torch.cat([x_t, t[:, None].to(x_t), words.to(x_t)], 1)
        hidden = checkpoint(self._block, inputs, use_reentrant=False) if self.checkpointing else self._block(inputs)
        return self.last(hidden)

    def _block(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(inputs))))


def clips_of(base: str) -> ClipRule | None:
    """The clips that a base takes, if it takes any."""
    return toy_clips.RULE if base.startswith(CLIPS) else None


class Toy(Family):
    """Points in the plane, or clips; flow prediction."""

    path = Path("flow")
    layouts = ("kohya",)
    lora_targets = {"linear": ("second",), "all": ("first", "second", "last")}  # noqa: RUF012
    latent_shape = (2,)
    size = (8, 8)
    step = 8
    picture_hash = caption_hash = "toy"

    def __init__(self, model: Model, device: Device) -> None:
        base, clips = model.base, with_frames(clips_of(model.base), model.frames)
        seed = base.removeprefix(CLIPS)
        if not seed.isdigit():
            raise SpinliteError(f"the base of the toy family is a number (its seed), not {base!r}", fix='set model.base = "0"')
        quantize = device.levers.quantize
        self.clips = clips
        if clips:
            self.latent_shape, self.size, self.picture_hash = toy_clips.latent_shape(clips), toy_clips.SIZE, "toy clips"
        self._net = toy_clips.ClipNet(int(seed), WIDTH) if clips else Net(int(seed))
        self.net = place_network(self._net, device.device, quantize, self.lora_targets["linear"])
        self.set_checkpointing(device.levers.checkpointing)
        self.base_hash = fingerprint("toy", base, *[quantize] * (quantize != "none"))
        self.attention = "none"
        self.title = "toy (clips)" if clips else "toy (points in the plane)"

    def start_from(self, path: FilePath) -> None:
        known = module_shapes(self.net)
        self.start = read_lora_for(path, {f"lora_unet_{name}": f"unet.{name}" for name in known}, known, self.title)

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        if self.clips:
            return toy_clips.encode_clips(pictures)
        means = [picture.image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) for picture in pictures]
        return {"x0": torch.tensor([[m[0], m[2]] for m in means]) / 127.5 - 1}  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]

    def count_chunks(self, captions: Sequence[str]) -> int:
        return 1

    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        rows = []
        for caption in captions:
            words = torch.zeros(WIDTH)
            for word in caption.lower().split():
                words[hashlib.sha256(word.encode()).digest()[0] % WIDTH] += 1
            rows.append(words)
        return {"words": torch.stack(rows)}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x_t, t, cond["words"])

    def decode(self, latents: Tensor) -> Sequence[Drawn]:
        if self.clips:
            return [toy_clips.decode_clip(latent) for latent in latents]
        levels = ((latents.float().clamp(-1, 1) + 1) * 127.5).round().int().numpy().tolist()
        return [Image.new("RGB", self.size, (red, 0, blue)) for red, blue in levels]

    def free(self) -> None:
        pass

    def set_checkpointing(self, on: bool) -> None:
        self._net.checkpointing = on

    def schedule(self, name: str, spacing: str, steps: int, shape: Sequence[int], device: torch.device | str) -> Any:
        if name != "euler":
            raise SpinliteError(f"the toy family has no sampler {name!r}", fix='set play.sampler = "euler"')
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps, device=device)
        return scheduler

    def shift(self, shape: Sequence[int]) -> float:
        return 1.0

    def export_name(self, name: str, layout: Layout) -> str:
        return f"lora_{name.replace('.', '_')}"

    @contextlib.contextmanager
    def with_lora_file(self, path: FilePath, strength: float) -> Iterator[None]:
        tensors, lora = read_tensors(path)[0], {}
        for name, module in self.net.named_modules():
            key = f"lora_unet_{name}"
            if isinstance(module, nn.Linear) and f"{key}.alpha" in tensors:
                down, up = (tensors[f"{key}.lora_{part}.weight"].float() for part in ("down", "up"))
                lora[f"unet.{name}"] = Pair(down, up * tensors[f"{key}.alpha"].item() / len(down))
        with applied(self.net, lora, strength):
            yield

    def export_metadata(self) -> dict[str, str]:
        return {}
