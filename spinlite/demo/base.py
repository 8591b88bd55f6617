"""The demo's base as a Stable Diffusion folder, and a sheet of its samples to look at."""

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from .unet import SCHEDULE, Pair


def pipeline(vae: AutoencoderKL, pair: Pair, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts, copied in fp16 on the CPU, with SD 1.5's scheduler."""
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.register_to_config(clip_sample=False)
    vae, pair = copy.deepcopy(vae).cpu().half(), copy.deepcopy(pair).cpu().half()
    return StableDiffusionPipeline(
        vae=vae.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        text_encoder=pair.text,
        tokenizer=tokenizer,
        unet=pair.unet.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        scheduler=scheduler,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def write_base(vae: AutoencoderKL, pair: Pair, tokenizer_folder: Path, out: Path) -> None:
    """Writes the diffusers folder aside, then replaces `out` file by file, so that readers find it whole."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".base-") as aside:
        pipeline(vae, pair, tokenizer).save_pretrained(aside)
        shutil.rmtree(Path(aside) / "tokenizer")
        shutil.copytree(tokenizer_folder, Path(aside) / "tokenizer")
        for file in sorted(Path(aside).rglob("*")):
            if file.is_file():
                place = out / file.relative_to(aside)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.chmod(0o644)
                os.replace(file, place)


def sample(base: Path, captions: list[str], guidance: float = 2.0, steps: int = 30, seed: int = 0) -> list[Image.Image]:
    """One picture a caption, as `StableDiffusionPipeline` draws it, each from its own seed."""
    pipe = StableDiffusionPipeline.from_pretrained(str(base), torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    chances = [torch.Generator().manual_seed(seed + i) for i in range(len(captions))]
    made = pipe(captions, guidance_scale=guidance, num_inference_steps=steps, generator=chances)
    return made.images  # type: ignore[union-attr]


def sheet(pictures: list[Image.Image], captions: list[str], columns: int = 8, scale: int = 2) -> Image.Image:
    """Pictures in rows, each above its caption."""
    side = 64 * scale
    page = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * (side + 14)), "white")
    pen = ImageDraw.Draw(page)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = i % columns * side, i // columns * (side + 14)
        page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + 2, top + side), caption[: 20 * scale // 2], fill="black")
    return page
