"""What SD 1.x, SD 2.x and SDXL share: parts loaded on demand, the VAE, LoRA targets. Latents are (B, C, H/f, W/f)."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from PIL.Image import Image
from torch import Tensor, nn

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import KINDS, Checkpoint, Kind, explain_errors, load_pretrained, locate, require_whole
from spinlite.families.names import kohya_keys, module_shapes
from spinlite.families.open import open_checkpoint
from spinlite.families.schedule import make_sampler, noise_scheduler, resolve_prediction
from spinlite.families.single_file import CONFIGS, FOLDERS, read_header
from spinlite.lora.apply import attach
from spinlite.lora.read import read_lora_for, text_encoder_part
from spinlite.lora.tensors import Lora
from spinlite.maths.draws import gaussian
from spinlite.maths.paths import Path
from spinlite.memory.device import Device, probe_compiler
from spinlite.memory.quantized import place_network
from spinlite.runs.store import fingerprint, fingerprint_files

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "kept in float32: []" not in record.getMessage())

LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TARGETS = {"linear": LINEAR, "all": LINEAR + CONVOLUTION}
LOADERS: dict[Kind, Any] = {
    "sd1": StableDiffusionLoraLoaderMixin,
    "sd2": StableDiffusionLoraLoaderMixin,
    "sdxl": StableDiffusionXLLoraLoaderMixin,
}
VARIANTS = 64  # compiled versions of one block: its sizes x policy, opponent, base x with and without gradient
PIXELS = 2**20  # in one pass through the VAE


class Parts:
    """A base model on a device. The network stays there; the VAE, tokenizers and text encoders are loaded on demand.

    The VAE computes in bf16 or fp32, never in fp16: SDXL's VAE overflows there.
    """

    def __init__(
        self, base: str, kinds: Sequence[Kind], device: Device, vae: str | None, prediction: str, zero_snr: bool | None
    ) -> None:
        self.checkpoint = open_checkpoint(base)
        self.kind: Kind = self.checkpoint.kind
        self.device, self._vae = device, locate(vae, "model.vae") if vae else None
        if self.kind not in kinds:
            problem = f"{base} is {KINDS[self.kind]}, but model.family says otherwise"
            raise SpinliteError(problem, fix='set model.family = "auto"')
        chosen, zero = resolve_prediction(self.checkpoint, prediction, zero_snr)
        self.noise = noise_scheduler(self.checkpoint, chosen, zero)
        self.path = Path(chosen, self.noise.alphas_cumprod)
        self._loaded: dict[str, Any] = {}
        self._text: Lora = {}  # the starting LoRA's part for text encoders: every caption is encoded with it
        levers = device.levers
        self.net: nn.Module = place_network(
            self.checkpoint.load("unet", device.dtype), device.device, levers.quantize, LINEAR
        ).eval()
        self.set_checkpointing(levers.checkpointing)
        self.attention = self._set_attention()
        if levers.channels_last:
            self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if levers.compile:
            self._compile()
        settings = self.checkpoint.config("unet")
        side = settings["sample_size"]
        self.latent_shape = (settings["in_channels"], side, side)
        self.size, self.step = size_and_step_of(self.checkpoint)
        self.factor = self.size[0] // side  # pixels per latent, along one side
        vae_hash = _vae_fingerprint(self._vae) if self._vae else None
        made_of = [self.checkpoint.fingerprint(), vae_hash, chosen, zero]
        self.picture_hash = fingerprint(vae_hash or self.checkpoint.fingerprint("vae"))
        self.caption_hash = fingerprint(self.checkpoint.fingerprint("text_encoder", "tokenizer"), str(device.dtype))
        self.base_hash = fingerprint(*made_of, *[levers.quantize] * (levers.quantize != "none"))
        self.title = f"{base} ({KINDS[self.kind]}, predicts {chosen}{', zero terminal SNR' * zero})"

    def part(self, name: str) -> Any:
        """The VAE, a tokenizer or a text encoder, by diffusers' name: loaded at first use, kept until `free`."""
        if name not in self._loaded:
            if name.startswith("tokenizer"):
                self._loaded[name] = self.checkpoint.load(name, torch.float32)
            else:
                model = self._load_vae() if name == "vae" else self.checkpoint.load(name, self.device.dtype)
                self._loaded[name] = model.to(self.device.device).eval().requires_grad_(False)
                attach(model, self._text, part=name)
        return self._loaded[name]

    def set_checkpointing(self, on: bool) -> None:
        """Gradient checkpointing: keep one block's activations at a time and compute the others again in the backward pass."""
        net: Any = self.net
        if on:
            net.enable_gradient_checkpointing()
        else:
            net.disable_gradient_checkpointing()

    def sampler(self, name: str, spacing: str) -> Any:
        """A diffusers scheduler for this model, by name, with its steps placed as `spacing` says."""
        return make_sampler(self.noise, name, spacing)

    def free(self) -> None:
        """Free the memory of everything that `part` loaded."""
        self._loaded.clear()
        if self.device.device.type == "cuda":
            torch.cuda.empty_cache()

    def tokenize(self, captions: Sequence[str], name: str = "tokenizer") -> Tensor:
        """Captions -> (B, length) token ids on the device, cut or padded to the tokenizer's length."""
        tokenizer = self.part(name)
        settings: dict[str, Any] = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        return tokenizer(list(captions), return_tensors="pt", **settings).input_ids.to(self.device.device)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image], sampled: Sequence[str] | None = None) -> Tensor:
        """RGB pictures of one size -> latents, (B, C, H/f, W/f), fp32, on the CPU.

        They are the means of the VAE's distribution; with `sampled`, random samples of it, seeded by these names.
        """
        vae = self.part("vae")
        processor = VaeImageProcessor(do_resize=False, do_normalize=False)  # its own normalising depends on the values
        pixels = processor.normalize(processor.preprocess(list(images)))  # pyright: ignore[reportArgumentType]
        pixels = pixels.to(self.device.device, vae.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        rows = max(1, PIXELS // pixels[0, 0].numel())
        encoded = [vae.encode(chunk).latent_dist for chunk in pixels.split(rows)]
        means = torch.cat([each.mode() for each in encoded]).float().cpu()
        if sampled:
            noise = torch.stack([gaussian(means[0].shape, "posterior", name) for name in sampled])
            means += torch.cat([each.std for each in encoded]).float().cpu() * noise
        return means * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image]:
        """Latents -> RGB pictures."""
        vae = self.part("vae")
        scaled = (latents / vae.config.scaling_factor).to(self.device.device, vae.dtype)
        rows = max(1, PIXELS // (scaled[0, 0].numel() * self.factor**2))
        pixels = torch.cat([vae.decode(chunk).sample.float().cpu() for chunk in scaled.split(rows)])
        return VaeImageProcessor().postprocess(pixels, output_type="pil")  # pyright: ignore[reportReturnType]

    def export_metadata(self, version: str, architecture: str, implementation: str) -> dict[str, str]:
        """The keys of kohya and ModelSpec that tell other programs which base a LoRA is for."""
        width, height = self.size
        return {
            "ss_base_model_version": version,
            "ss_v2": str(self.kind == "sd2"),
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": implementation,
            "modelspec.prediction_type": "v" if self.path.prediction == "v" else "epsilon",
            "modelspec.resolution": f"{width}x{height}",
        }

    def start_from(self, path: FilePath) -> Lora:
        """Read the LoRA that a run starts from; from here on captions are encoded with its part for the text encoders."""
        known = module_shapes(self.net)
        lora = read_lora_for(path, kohya_keys(known, self.kind), known, f"an {KINDS[self.kind]} model")
        self._text = text_encoder_part(lora)
        if self._text:
            self.base_hash = fingerprint(self.base_hash, fingerprint_files([path]))
            self.caption_hash = fingerprint(self.caption_hash, fingerprint_files([path]))
        return lora

    @contextlib.contextmanager
    def with_lora_file(self, path: FilePath, strength: float) -> Iterator[None]:
        """The network with a LoRA file, read by diffusers' own loader, inside a `with` block."""
        loader = LOADERS[self.kind]
        net: Any = self.net
        state, alphas, metadata = loader.lora_state_dict(str(path), unet_config=net.config, return_lora_metadata=True)
        net.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata, adapter_name="file")
        try:
            net.set_adapters("file", strength)
            yield
        finally:
            net.unload_lora()

    def _set_attention(self) -> str:
        """Choose what computes attention; returns which and why, in words."""
        net: Any = self.net
        kind, why = self.device.attention(m.inner_dim // m.heads for m in net.modules() if isinstance(m, Attention))
        net.set_attn_processor(XFormersAttnProcessor() if kind == "xformers" else AttnProcessor2_0())
        return f"{'xformers' if kind == 'xformers' else 'SDPA'} ({why})"

    def _compile(self) -> None:
        probe_compiler(self.device.device)
        torch._dynamo.config.recompile_limit = VARIANTS
        net: Any = self.net
        net.compile_repeated_blocks()

    def _load_vae(self) -> Any:
        dtype = torch.float32 if self.device.dtype == torch.float16 else self.device.dtype
        if self._vae is None:
            return self.checkpoint.load("vae", dtype)
        vae = self._vae
        if vae.lower().endswith(".safetensors"):
            read_header(FilePath(vae))  # raises an error that says what is wrong with the file
            options: dict[str, Any] = {"config": str(CONFIGS / FOLDERS[self.kind]), "subfolder": "vae", "dtype": dtype}
            model = explain_errors(vae, lambda: AutoencoderKL.from_single_file(vae, local_files_only=True, **options))
            return require_whole(vae, "vae", model)
        within = "vae" if (FilePath(vae) / "vae").is_dir() else ""
        return explain_errors(vae, lambda: load_pretrained(AutoencoderKL, vae, dtype, within))


def size_and_step_of(checkpoint: Checkpoint) -> tuple[tuple[int, int], int]:
    """((width, height) of the model's own pictures, step), px: sides of other pictures are multiples of `step`.

    VAE and network can halve a multiple of the step without remainder. It is at least a 16th of a side, so that there are not
    more shapes than pictures. For SDXL it is 64, as in its paper.
    """
    unet = checkpoint.config("unet")
    factor = 2 ** (len(checkpoint.config("vae")["block_out_channels"]) - 1)
    side, halved = unet["sample_size"] * factor, factor * 2 ** (len(unet["block_out_channels"]) - 1)
    return (side, side), halved * max(1, round(side / 16 / halved))


def _vae_fingerprint(vae: str) -> str:
    path = FilePath(vae)
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    return fingerprint_files(files) if files else fingerprint(vae)
