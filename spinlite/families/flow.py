"""What flow models share: a transformer on the device, parts loaded on demand, LoRA files in peft's layout."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import diffusers
import torch
import transformers
from diffusers import loaders
from torch import Tensor

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.flow_schedule import flow_schedule
from spinlite.families.kinds import KINDS
from spinlite.families.latents import Normaliser
from spinlite.families.names import module_shapes
from spinlite.families.open import open_base
from spinlite.families.picture import Drawn, with_frames
from spinlite.families.record import Record
from spinlite.families.vae import decode_clips, decode_latents, encode_clips, encode_images
from spinlite.lora.layouts import Layout
from spinlite.lora.read import read_lora_for
from spinlite.maths.paths import Path
from spinlite.memory.device import Device, probe_compiler
from spinlite.memory.quantized import place_encoder, place_network
from spinlite.runs.files import fingerprint

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

VARIANTS = 64  # compiled versions of one block, as in `diffusion`


class Flow(Family):
    """A flow model over diffusers. Its network stays on the device; VAE, tokenizers and text encoders are loaded on demand.

    A kind adds how captions are encoded, what the network is told, its shifts, and which of its layers learn or get smaller.
    """

    path = Path("flow")
    layouts = ("peft",)
    quantised: Sequence[str]  # ends of linear layers that memory.quantize makes smaller; more than those that learn
    loader: str  # diffusers' mixin that reads LoRA files for this model
    encoder_layers: int | None = None  # of its text encoder, so many from the first are read; the others are not kept
    frames = 0  # how many frames a latent of a picture has; 0: it has no such dimension

    def __init__(self, model: Model, device: Device) -> None:
        """Raises SpinliteError if the base can't be read, or the settings don't suit it."""
        self._checkpoint, self._device = open_base(model), device
        self._kind = self._checkpoint.kind
        if device.levers.precision == "fp16":
            problem = f"{self.record.title} overflows in fp16, and this card has no bf16"
            raise SpinliteError(problem, fix="use a card with bf16 (RTX 30 or newer), or add --set memory.precision=fp32")
        self.size, self.step = self._checkpoint.size_and_step(model.resolution)
        self._factor = self._checkpoint.factor  # pixels per number of a latent, along one side
        width, height = (side // self._factor for side in self.size)
        self.clips = with_frames(self.record.clips, model.frames)
        frames = self.clips.latents(self.clips.most) if self.clips else self.frames
        self.latent_shape = (self.channels, *[frames] * bool(frames), height, width)
        self._loaded: dict[str, Any] = {}
        self._place_network()
        self._name_hashes()
        self.note = self.record.note
        self.title = f"{model.base} ({self.record.title}, flow)"

    @property
    def record(self) -> Record:
        return KINDS[self._kind]

    @property
    def channels(self) -> int:
        """How many channels a latent has."""
        return self._checkpoint.config(self.record.net)["in_channels"]

    @abstractmethod
    def normaliser(self, vae: Any) -> Normaliser:
        """How this VAE's latents become those that the network learns on."""

    @abstractmethod
    def sampling_shift(self, steps: int, shape: Sequence[int]) -> float:
        """How far the steps of a sampler lean to noise, as diffusers' pipeline for this model spreads them."""

    @abstractmethod
    def choose_targets(self, modules: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str]]:
        """model.targets -> the names of the layers that learn, of all linear layers of the network."""

    def start_from(self, path: FilePath) -> None:
        known = module_shapes(self.net)
        self.start = read_lora_for(path, self.record.lora.keys(known), known, self.record.title)

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        vae = self._part("vae")
        if self.clips:
            return {"x0": encode_clips(vae, [[p.image, *p.rest] for p in pictures], self.normaliser(vae), sampled)}
        return {"x0": encode_images(vae, [p.image for p in pictures], self.normaliser(vae), sampled, self.frames)}

    def count_chunks(self, captions: Sequence[str]) -> int:
        return 1

    def decode(self, latents: Tensor) -> Sequence[Drawn]:
        vae = self._part("vae")
        if self.clips:
            return decode_clips(vae, latents, self.normaliser(vae))
        return decode_latents(vae, latents, self.normaliser(vae), self._factor)

    def free(self) -> None:
        self._loaded.clear()
        if self._device.device.type == "cuda":
            torch.cuda.empty_cache()

    def set_checkpointing(self, on: bool) -> None:
        net: Any = self.net
        if on:
            net.enable_gradient_checkpointing()
        else:
            net.disable_gradient_checkpointing()

    def schedule(self, name: str, spacing: str, steps: int, shape: Sequence[int], device: torch.device | str) -> Any:
        return flow_schedule(name, spacing, steps, self.sampling_shift(steps, shape), device)

    def export_name(self, name: str, layout: Layout) -> str:
        return self.record.lora.written(name.removeprefix("unet."))

    @contextlib.contextmanager
    def with_lora_file(self, path: FilePath, strength: float) -> Iterator[None]:
        state, metadata = getattr(loaders, self.loader).lora_state_dict(str(path), return_lora_metadata=True)
        net: Any = self.net
        net.load_lora_adapter(state, prefix=self.record.net, metadata=metadata, adapter_name="file")
        try:
            net.set_adapters("file", strength)
            yield
        finally:
            net.unload_lora()

    def export_metadata(self) -> dict[str, str]:
        width, height = self.size
        return {
            "ss_base_model_version": self.record.lora.version,
            "modelspec.architecture": f"{self.record.lora.architecture}/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.resolution": f"{width}x{height}",
        }

    def _part(self, name: str) -> Any:
        """The VAE, a tokenizer or a text encoder, by diffusers' name: loaded at first use, kept until `free`."""
        if name not in self._loaded:
            if "tokenizer" in name:
                self._loaded[name] = self._checkpoint.load(name, torch.float32)
            else:
                model: Any = self._checkpoint.load(name, self._device.dtype)
                place = self._device.device
                if name.startswith("text_encoder"):
                    if self.encoder_layers:
                        model.layers = model.layers[: self.encoder_layers]
                    model = place_encoder(model, place, self._device.levers.encoders)
                else:
                    model = model.to(place)
                self._loaded[name] = model.eval().requires_grad_(False)
        return self._loaded[name]

    def _place_network(self) -> None:
        """Load the network, and set it up as the device's levers say."""
        device, levers = self._device, self._device.levers
        net: Any = place_network(
            self._checkpoint.load(self.record.net, device.dtype), device.device, levers.quantize, self.quantised
        ).eval()  # fmt: skip
        self.net = net
        self.lora_targets = self.choose_targets(module_shapes(net))
        self.set_checkpointing(levers.checkpointing)
        if levers.attention == "xformers":
            net.set_attention_backend("xformers")
        self.attention = "xformers (memory.attention)" if levers.attention == "xformers" else "SDPA (the model's own)"
        if levers.compile:
            probe_compiler(device.device)
            torch._dynamo.config.recompile_limit = VARIANTS
            net._repeated_blocks = net._repeated_blocks or net._no_split_modules  # Cosmos names these alone
            net.compile_repeated_blocks()

    def _name_hashes(self) -> None:
        """Name what is made with this base by what it is made of."""
        quantize, bits = self._device.levers.quantize, self._device.levers.encoder_bits
        self.base_hash = fingerprint(self._checkpoint.fingerprint(), *[quantize] * (quantize != "none"))
        self.picture_hash = fingerprint(self._checkpoint.fingerprint("vae"), *self._device.half)
        self.caption_hash = fingerprint(
            self._checkpoint.fingerprint("text_", "tokenizer"), str(self._device.dtype), *bits
        )  # fmt: skip


def row_lengths(cond: Cond) -> list[int]:
    """How many rows of each caption are real, where a family keeps them as `length`: rows are padded to one width."""
    return [int(length) for length in cond["length"].tolist()]
