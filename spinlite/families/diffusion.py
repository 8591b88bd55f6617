"""What SD 1.x, SD 2.x and SDXL share: parts loaded on demand, captions in chunks, the VAE, LoRA targets."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from PIL.Image import Image
from torch import Tensor, nn

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import KINDS, Checkpoint, Kind, class_of, locate
from spinlite.families.chunks import CHUNK, count_chunks, tokenize
from spinlite.families.family import Family, Picture
from spinlite.families.latents import scaling_of
from spinlite.families.motion_kinds import ANIMATED
from spinlite.families.names import kohya_name, module_shapes
from spinlite.families.open import open_base
from spinlite.families.schedule import make_sampler, noise_scheduler, resolve_prediction
from spinlite.families.vae import decode_latents, encode_images, load_vae, vae_fingerprint
from spinlite.lora.apply import attach
from spinlite.lora.layouts import Layout
from spinlite.lora.read import read_lora_for, text_encoder_part
from spinlite.lora.tensors import Lora
from spinlite.maths.paths import Path
from spinlite.memory.device import Device, probe_compiler
from spinlite.memory.quantized import place_network
from spinlite.runs.files import fingerprint, fingerprint_files

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "kept in float32: []" not in record.getMessage())

LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TARGETS = {"linear": LINEAR, "all": LINEAR + CONVOLUTION}
LOADERS: dict[Kind, Any] = {
    "sd1": StableDiffusionLoraLoaderMixin,
    ANIMATED: StableDiffusionLoraLoaderMixin,
    "sd2": StableDiffusionLoraLoaderMixin,
    "sdxl": StableDiffusionXLLoraLoaderMixin,
}
VARIANTS = 64  # compiled versions of one block: its sizes x policy, opponent, base x with and without gradient
OWN_SKIP: dict[Kind, int] = {"sd1": 1, ANIMATED: 1, "sd2": 2, "sdxl": 2}  # the layer that a kind was trained with, from the end


class Diffusion(Family):
    """A base model over diffusers. Its network stays on the device; VAE, tokenizers and text encoders are loaded on demand.

    A kind adds how captions are encoded and what else the network is told.
    """

    lora_targets = TARGETS
    layouts = ("kohya", "diffusers")
    kinds: Sequence[Kind]  # that the class can train

    def __init__(self, model: Model, device: Device) -> None:
        """Raises SpinliteError if the base can't be read, or the settings don't suit it."""
        self._checkpoint = open_base(model)
        self._kind: Kind = self._checkpoint.kind
        self._device, self._vae = device, locate(model.vae, "model.vae") if model.vae else None
        if self._kind not in self.kinds:
            problem = f"{model.base} is {KINDS[self._kind].title}, but model.family says otherwise"
            raise SpinliteError(problem, fix='set model.family = "auto"')
        chosen, zero = resolve_prediction(self._checkpoint, model.prediction, model.zero_snr)
        self._noise = noise_scheduler(self._checkpoint, chosen, zero)
        self.path = Path(chosen, self._noise.alphas_cumprod)
        self.size, self.step = self._checkpoint.size_and_step(model.resolution)
        self._factor = self._checkpoint.factor  # pixels per latent, along one side
        width, height = (side // self._factor for side in self.size)
        self.latent_shape = (self._checkpoint.config("unet")["in_channels"], height, width)
        self._most_chunks, self._layer = model.max_tokens // CHUNK, _layer_to_read(self._checkpoint, model.clip_skip)
        self._loaded: dict[str, Any] = {}
        self._text: Lora = {}  # the starting LoRA's part for text encoders: every caption is encoded with it
        self._place_network()
        self._name_hashes(chosen, zero, model.clip_skip)
        self.title = f"{model.base} ({KINDS[self._kind].title}, predicts {chosen}{', zero terminal SNR' * zero})"
        if unread := self._checkpoint.unread:
            self.title += f", without {len(unread)} tensors that are no part of such a model, e.g. {unread[0]}"
        self._clip_skip = model.clip_skip

    def start_from(self, path: FilePath) -> None:
        known = module_shapes(self.net)
        record = KINDS[self._kind]
        self.start = read_lora_for(path, record.lora.keys(known), known, f"an {record.title} model")
        self._text = text_encoder_part(self.start)
        for part in {name.partition(".")[0] for name in self._text}:
            attach(_without_weights(self._checkpoint, part), self._text, part=part)  # refuses what the encoder lacks, now
        if self._text:
            self.base_hash = fingerprint(self.base_hash, fingerprint_files([path]))
            self.caption_hash = fingerprint(self.caption_hash, fingerprint_files([path]))

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        vae = self._part("vae")
        return {"x0": encode_images(vae, [picture.image for picture in pictures], scaling_of(vae), sampled)}

    def count_chunks(self, captions: Sequence[str]) -> int:
        return count_chunks(self._part("tokenizer"), captions, self._most_chunks)

    def decode(self, latents: Tensor) -> list[Image]:
        vae = self._part("vae")
        return decode_latents(vae, latents, scaling_of(vae), self._factor)

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
        scheduler = make_sampler(self._noise, name, spacing)
        scheduler.set_timesteps(steps, device=device)
        return scheduler

    def shift(self, shape: Sequence[int]) -> float:
        return 1.0

    def export_name(self, name: str, layout: Layout) -> str:
        return kohya_name(name, self._kind) if layout == "kohya" else name

    @contextlib.contextmanager
    def with_lora_file(self, path: FilePath, strength: float) -> Iterator[None]:
        loader = LOADERS[self._kind]
        net: Any = self.net
        state, alphas, metadata = loader.lora_state_dict(str(path), unet_config=net.config, return_lora_metadata=True)
        net.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata, adapter_name="file")
        try:
            net.set_adapters("file", strength)
            yield
        finally:
            net.unload_lora()

    def _part(self, name: str) -> Any:
        """The VAE, a tokenizer or a text encoder, by diffusers' name: loaded at first use, kept until `free`."""
        if name not in self._loaded:
            if name.startswith("tokenizer"):
                self._loaded[name] = self._checkpoint.load(name, torch.float32)
            else:
                dtype = self._device.dtype
                vae = name == "vae"
                model = load_vae(self._checkpoint, self._vae, dtype) if vae else self._checkpoint.load(name, dtype)
                self._loaded[name] = model.to(self._device.device).eval().requires_grad_(False)
                attach(model, self._text, part=name)
        return self._loaded[name]

    def _read(self, captions: Sequence[str], chunks: int, number: str, normed: bool) -> tuple[Tensor, Any]:
        """(states of the layer that is read, (B, chunks x length, width), what the text encoder says of all chunks).

        With `normed` its final norm is applied, as SD 1.x and 2.x were trained. `number` names the text encoder: "" or "_2".
        """
        encoder = self._part(f"text_encoder{number}")
        ids = tokenize(self._part(f"tokenizer{number}"), captions, chunks).to(self._device.device)
        said = encoder(ids.flatten(0, 1), output_hidden_states=not normed or self._layer > 1)
        if not normed:
            states = said.hidden_states[-self._layer]
        elif self._layer == 1:
            states = said.last_hidden_state
        else:
            states = encoder.final_layer_norm(said.hidden_states[-self._layer])
        return states.unflatten(0, (-1, chunks)).flatten(1, 2), said

    def _describe_base(self, version: str, architecture: str, implementation: str) -> dict[str, str]:
        """The keys of kohya and ModelSpec that tell other programs which base a LoRA is for."""
        width, height = self.size
        return {
            "ss_base_model_version": version,
            "ss_v2": str(self._kind == "sd2"),
            **({"ss_clip_skip": str(self._clip_skip)} if self._clip_skip else {}),
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": implementation,
            "modelspec.prediction_type": "v" if self.path.prediction == "v" else "epsilon",
            "modelspec.resolution": f"{width}x{height}",
        }

    def _place_network(self) -> None:
        """Load the network, and set it up as the device's levers say."""
        device, levers = self._device, self._device.levers
        self.net = place_network(
            self._checkpoint.load("unet", device.dtype), device.device, levers.quantize, LINEAR
        ).eval()  # fmt: skip
        net: Any = self.net
        self.set_checkpointing(levers.checkpointing)
        kind, why = device.attention(m.inner_dim // m.heads for m in net.modules() if isinstance(m, Attention))
        net.set_attn_processor(XFormersAttnProcessor() if kind == "xformers" else AttnProcessor2_0())
        self.attention = f"{'xformers' if kind == 'xformers' else 'SDPA'} ({why})"
        if levers.channels_last:
            net.to(memory_format=torch.channels_last)
        if levers.compile:
            probe_compiler(device.device)
            torch._dynamo.config.recompile_limit = VARIANTS
            net.compile_repeated_blocks()

    def _name_hashes(self, prediction: str, zero_snr: bool, clip_skip: int | None) -> None:
        """Name what is made with this base by what it is made of. What is as the base says itself adds nothing to a name."""
        vae, quantize = vae_fingerprint(self._vae) if self._vae else None, self._device.levers.quantize
        read = [] if clip_skip in (None, OWN_SKIP[self._kind]) else [f"clip_skip {clip_skip}"]
        made_of = [self._checkpoint.fingerprint(), vae, prediction, zero_snr, *[quantize] * (quantize != "none"), *read]
        text = self._checkpoint.fingerprint("text_encoder", "tokenizer")
        self.picture_hash = fingerprint(vae or self._checkpoint.fingerprint("vae"), *self._device.half)
        self.caption_hash = fingerprint(text, str(self._device.dtype), *read)
        self.base_hash = fingerprint(*made_of)


def _without_weights(checkpoint: Checkpoint, part: str) -> nn.Module:
    """A text encoder without its weights. Raises SpinliteError if the base has no such part."""
    if part == "text_encoder_2" and checkpoint.kind != "sdxl":
        problem = f"the LoRA changes a second text encoder, which {KINDS[checkpoint.kind].title} does not have"
        raise SpinliteError(problem, fix="use a LoRA that was made for this kind of base model")
    made = class_of(KINDS[checkpoint.kind].parts, part)
    with torch.device("meta"):
        return made(made.config_class(**checkpoint.config(part)))


def _layer_to_read(checkpoint: Checkpoint, clip_skip: int | None) -> int:
    """Which layer of the stored text encoders is read, from the end. SD 2.x's is stored without its last layer."""
    kind = checkpoint.kind
    left_out = int(kind == "sd2")
    layer = (clip_skip or OWN_SKIP[kind]) - left_out
    layers = checkpoint.config("text_encoder")["num_hidden_layers"]
    if not 1 <= layer <= layers:
        raise SpinliteError(
            f"{checkpoint.name} has no layer for model.clip_skip = {clip_skip}: its text encoder has layers "
            f"{1 + left_out} to {layers + left_out} from the end",
            fix=f"set model.clip_skip = {OWN_SKIP[kind]}, with which {KINDS[kind].title} was trained, or remove it",
        )
    return layer
