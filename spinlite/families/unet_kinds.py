"""The kinds of base model with a UNet: SD 1.x, SD 2.x and SDXL."""

from collections.abc import Mapping
from functools import partial

from spinlite.families.names import kohya_keys
from spinlite.families.programs import verdicts
from spinlite.families.record import Config, Geometry, Kind, LoraNames, Record
from spinlite.families.shapes import unet_published

PARTS = {
    "unet": "diffusers.UNet2DConditionModel", "vae": "diffusers.AutoencoderKL", "tokenizer": "transformers.CLIPTokenizer",
    "text_encoder": "transformers.CLIPTextModel",
}  # fmt: skip
XL_PARTS = {
    **PARTS, "tokenizer_2": "transformers.CLIPTokenizer", "text_encoder_2": "transformers.CLIPTextModelWithProjection",
}  # fmt: skip


def _factor(config: Config) -> int:
    return 2 ** (len(config("vae")["block_out_channels"]) - 1)


UNET = Geometry(
    side=lambda config: config("unet")["sample_size"] * _factor(config),
    factor=_factor,
    halved=lambda config: _factor(config) * 2 ** (len(config("unet")["block_out_channels"]) - 1),
)


def _lora(kind: Kind, folder: str, widths: Mapping[str, int], version: str) -> LoraNames:
    return LoraNames(partial(unet_published, folder), partial(kohya_keys, kind=kind), verdicts, widths, version)


SD1 = Record(
    "SD 1.x", "sd", "families.sd:StableDiffusion", "sd15", PARTS, "unet", "UNet", UNET,
    _lora("sd1", "sd15", {"text_encoder": 768}, "sd_v1"), hub=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
)  # fmt: skip
SD2 = Record(
    "SD 2.x", "sd", "families.sd:StableDiffusion", "sd21", PARTS, "unet", "UNet", UNET,
    _lora("sd2", "sd21", {"text_encoder": 1024}, "sd_v2"),
)  # fmt: skip
SDXL = Record(
    "SDXL", "sdxl", "families.sdxl:StableDiffusionXL", "sdxl", XL_PARTS, "unet", "UNet", UNET,
    _lora("sdxl", "sdxl", {"text_encoder": 768, "text_encoder_2": 1280}, "sdxl_"),
    hub=(
        "stabilityai/stable-diffusion-xl-base-1.0", "Laxhar/noobai-XL-Vpred-1.0", "Laxhar/noobai-XL-1.1",
        "OnomaAIResearch/Illustrious-xl-early-release-v0", "cagliostrolab/animagine-xl-4.0",
    ),
)  # fmt: skip
