"""Stable Diffusion 1.x and its relatives, over diffusers. Latents are (B, C, H/f, W/f)."""

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spinlite.config import PACKAGE
from spinlite.device import Device
from spinlite.errors import SpinliteError
from spinlite.families import Cond, Family
from spinlite.maths.paths import Path
from spinlite.store import fingerprint, fingerprint_files

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
SAMPLERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
}
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")


class StableDiffusion(Family):
    """A diffusers folder (or hub id) in Stable Diffusion's layout; "demo" is the one in the package."""

    lora_targets = {"linear": LINEAR, "all": LINEAR + CONVOLUTION}  # noqa: RUF012

    def __init__(self, base: str, device: Device) -> None:
        self._base = str(PACKAGE / "demo" / "base") if base == "demo" else base
        self._device = device
        self._parts: dict[str, Any] = {}
        self.title = f"{base} (Stable Diffusion layout)"
        self.net = self._load(UNet2DConditionModel, "unet").to(device.device)
        self.net.eval()
        unet: Any = self.net.config
        noise = self._load(diffusers.DDPMScheduler, "scheduler")
        kind = noise.config.prediction_type
        if kind not in PREDICTIONS:
            raise SpinliteError(f"{base} predicts {kind!r}", fix="use a model that predicts epsilon or v_prediction")
        self.path = Path(PREDICTIONS[kind], noise.alphas_cumprod)  # pyright: ignore[reportArgumentType]
        self._noise = noise
        side, channels = unet["sample_size"], unet["in_channels"]
        self.latent_shape = (channels, side, side)
        factor = 2 ** (len(self._vae_config()["block_out_channels"]) - 1)
        self.size = (side * factor, side * factor)
        folder = FilePath(self._base)
        files = sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*/*.json"))
        self.base_hash = fingerprint_files(files) if files else fingerprint(base)

    def encode(self, pictures: Sequence[Image]) -> dict[str, Tensor]:
        vae = self._part("vae")
        pixels = VaeImageProcessor(do_resize=False).preprocess(list(pictures)).to(self._device.device, vae.dtype)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        return {"x0": latents.float().cpu()}

    def prompt(self, captions: Sequence[str]) -> Cond:
        tokenizer, encoder = self._part("tokenizer"), self._part("text_encoder")
        tokens = tokenizer(
            list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return {"prompt": encoder(tokens.to(self._device.device)).last_hidden_state.cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._device.dtype
        return self.net(x_t.to(dtype), t, encoder_hidden_states=cond["prompt"].to(dtype)).sample

    def decode(self, latents: Tensor) -> list[Image]:
        vae = self._part("vae")
        with torch.no_grad():
            scaled = latents.to(self._device.device, vae.dtype) / vae.config.scaling_factor
            pixels = vae.decode(scaled).sample.float().cpu()
        return VaeImageProcessor().postprocess(pixels, output_type="pil")  # pyright: ignore[reportReturnType]

    def free(self) -> None:
        self._parts.clear()
        if self._device.device.type == "cuda":
            torch.cuda.empty_cache()

    def sampler(self, name: str) -> Any:
        return getattr(diffusers, SAMPLERS[name]).from_config(self._noise.config)

    def export_name(self, module: str) -> str:
        return "lora_unet_" + module.replace(".", "_")

    def export_metadata(self) -> dict[str, str]:
        v = self.path.prediction == "v"
        width, height = self.size
        return {
            "ss_base_model_version": "sd_v1_v" if v else "sd_v1",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if v else "epsilon",
            "modelspec.resolution": f"{width}x{height}",
        }

    def _part(self, name: str) -> Any:
        """The VAE, tokenizer or text encoder: loaded at first use, kept until `free`."""
        if name not in self._parts:
            kinds: dict[str, Callable[..., Any]] = {
                "vae": AutoencoderKL, "tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel,
            }  # fmt: skip
            part = self._load(kinds[name], name)
            self._parts[name] = part if name == "tokenizer" else part.to(self._device.device).eval().requires_grad_(False)
        return self._parts[name]

    def _vae_config(self) -> dict[str, Any]:
        return self._guard(lambda: AutoencoderKL.load_config(self._base, subfolder="vae"))

    def _load(self, kind: Any, subfolder: str) -> Any:
        options: dict[str, Any] = {"subfolder": subfolder}
        if kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel):
            options |= {"use_safetensors": True, "dtype": self._device.dtype}
        return self._guard(lambda: kind.from_pretrained(self._base, **options))

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (OSError, ValueError) as error:
            raise SpinliteError(
                f"can't read the base model {self._base!r}: {str(error).splitlines()[0]}",
                fix="set model.base to a diffusers folder with safetensors weights, or a hub id, that this computer can reach",
            ) from None
