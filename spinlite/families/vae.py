"""The VAE: pictures to latents (B, C, H/f, W/f) and back, clips to (B, C, F, H/f, W/f).

It computes in bf16 or fp32, since SDXL's overflows in fp16.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from spinlite.families.checkpoint import Checkpoint, Kind, explain_errors, load_pretrained, require_sound, require_whole
from spinlite.families.folder_check import check_index, is_index
from spinlite.families.kinds import KINDS
from spinlite.families.latents import Normaliser
from spinlite.families.single_file import read_header
from spinlite.maths.draws import gaussian
from spinlite.runs.files import fingerprint, fingerprint_files

PIXELS = 2**20  # in one pass


@torch.no_grad()
def encode_images(
    vae: Any, images: Sequence[Image], normaliser: Normaliser, sampled: Sequence[str] | None = None, frames: int = 0
) -> Tensor:  # fmt: skip
    """RGB pictures of one size -> latents, (B, C, H/f, W/f), fp32, on the CPU. With `frames` they are (B, C, 1, H/f, W/f).

    They are the means of the VAE's distribution; with `sampled`, random samples of it, seeded by these names.
    """
    pixels = _pixels(images).to(vae.device, vae.dtype)
    if frames:  # a VAE of clips
        pixels = pixels.unsqueeze(2)
    rows = max(1, PIXELS // pixels[0, 0].numel())
    return _latents([vae.encode(chunk).latent_dist for chunk in pixels.split(rows)], normaliser, sampled)


@torch.no_grad()
def encode_clips(
    vae: Any, clips: Sequence[Sequence[Image]], normaliser: Normaliser, sampled: Sequence[str] | None = None
) -> Tensor:
    """The same for clips of one size and length, the frames of each: latents are (B, C, F, H/f, W/f).

    One clip is encoded at a time, and a causal VAE reads it a few frames at a time.
    """
    encoded = []
    for frames in clips:
        pixels = _pixels(frames).transpose(0, 1).unsqueeze(0)
        encoded.append(_in_tiles(vae, pixels[0, 0, 0].numel()).encode(pixels.to(vae.device, vae.dtype)).latent_dist)
    return _latents(encoded, normaliser, sampled)


def _latents(encoded: Sequence[Any], normaliser: Normaliser, sampled: Sequence[str] | None) -> Tensor:
    """What the VAE says of pictures -> their latents."""
    means = torch.cat([each.mode() for each in encoded]).float().cpu()
    if sampled:
        noise = torch.stack([gaussian(means[0].shape, "posterior", name) for name in sampled])
        means += torch.cat([each.std for each in encoded]).float().cpu() * noise
    return normaliser.normalise(means)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor, normaliser: Normaliser, factor: int) -> list[Image]:
    """Latents -> RGB pictures, `factor` times as large along each side."""
    scaled = normaliser.restore(latents).to(vae.device, vae.dtype)
    rows = max(1, PIXELS * normaliser.patch**2 // (scaled[0, 0].numel() * factor**2))
    pixels = torch.cat([vae.decode(chunk).sample.float().cpu() for chunk in scaled.split(rows)])
    if pixels.ndim == 5:  # one frame each
        pixels = pixels[:, :, 0]
    return VaeImageProcessor().postprocess(pixels, output_type="pil")  # pyright: ignore[reportReturnType]


@torch.no_grad()
def decode_clips(vae: Any, latents: Tensor, normaliser: Normaliser) -> list[list[Image]]:
    """Latents of clips -> the RGB frames of each. One clip is decoded at a time."""
    drawn, factor = [], vae.config.scale_factor_spatial
    for latent in normaliser.restore(latents).split(1):
        _in_tiles(vae, latent[0, 0, 0].numel() * factor**2)
        pixels = vae.decode(latent.to(vae.device, vae.dtype)).sample[0].float().cpu().transpose(0, 1)
        drawn.append(VaeImageProcessor().postprocess(pixels, output_type="pil"))
    return drawn


def _pixels(images: Sequence[Image]) -> Tensor:
    """RGB pictures -> (B, 3, H, W) in [-1, 1]."""
    processor = VaeImageProcessor(do_resize=False, do_normalize=False)  # its own normalising depends on the values
    return processor.normalize(processor.preprocess(list(images)))  # pyright: ignore[reportArgumentType, reportReturnType]


def _in_tiles(vae: Any, pixels: int) -> Any:
    """The VAE, set to go over a frame of so many pixels in tiles that overlap if it is large, or at once if it is not."""
    vae.enable_tiling() if pixels > PIXELS else vae.disable_tiling()
    return vae


def load_vae(checkpoint: Checkpoint, other: str | None, dtype: torch.dtype) -> Any:
    """The base's own VAE, or the `other`: a folder, a hub id or a single file. Raises SpinliteError if it can't be read."""
    dtype = torch.float32 if dtype == torch.float16 else dtype
    if other is None:
        return checkpoint.load("vae", dtype)
    if other.lower().endswith(".safetensors"):
        model = _load_file(Path(other), checkpoint.kind, dtype)
    else:
        within = "vae" if (Path(other) / "vae").is_dir() else ""
        for index in filter(is_index, map(str, (Path(other) / within).glob("*.json"))):
            check_index(other, Path(index))
        model = explain_errors(other, lambda: load_pretrained(AutoencoderKL, other, dtype, within))
    return require_sound(other, "vae", model)


def vae_fingerprint(vae: str) -> str:
    """A hash of another VAE than the base's own."""
    path = Path(vae)
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    return fingerprint_files(files) if files else fingerprint(vae)


def _load_file(path: Path, kind: Kind, dtype: torch.dtype) -> Any:
    read_header(path)  # raises an error that says what is wrong with the file
    options: dict[str, Any] = {"config": str(KINDS[kind].folder), "subfolder": "vae", "dtype": dtype}
    model = explain_errors(str(path), lambda: AutoencoderKL.from_single_file(str(path), local_files_only=True, **options))
    return require_whole(str(path), "vae", model)
