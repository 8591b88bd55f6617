"""What a file is that is no Stable Diffusion to train on, by the names and shapes of its tensors, in words."""

import re
from collections.abc import Mapping

from spinlite.families.keys import NET
from spinlite.families.recognise import name_other_model

Shapes = Mapping[str, tuple[int, ...]]
MOTION = r".*motion_modules\."
KINDS_OF_FILES = {  # pattern at the beginning of a key -> what the file is
    MOTION: "is a motion module (AnimateDiff)",
    r"control_model\.|controlnet_|.*input_hint_block|.*zero_convs": "is a ControlNet",
    r"image_proj\.|ip_adapter\.": "is an IP-Adapter",
    r"emb_params$|clip_[lg]$|string_to_param": "is an embedding (textual inversion)",
    r"(first_stage_model\.|vae\.)?(decoder|encoder)\.(conv_in|mid|mid_block|up|down)": "is a VAE alone",
    r"(text_encoders\.\w+\.)?(transformer\.)?(text_model\.|encoder\.block\.|shared\.weight)": "is a text encoder alone",
    r"(conv_first|model\.0|body\.0)\.": "is an upscaler",
}
INPUTS = {  # channels that go into the network, other than 4 -> what the model is made for
    5: "depth maps (depth-to-image)", 7: "enlarging pictures (an upscaler)", 8: "editing pictures (InstructPix2Pix)",
    9: "inpainting",
}  # fmt: skip
CONTEXT = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}  # width of what the network reads of captions


def describe_inputs(channels: int) -> str:
    """What a network is that takes so many channels, not 4."""
    made_for = INPUTS.get(channels, f"{channels} channels of input")
    return f"is made for {made_for}: its network takes more than a noised picture"


def describe_file(shapes: Shapes) -> str:
    """What a file without Stable Diffusion's network and text encoders is instead, as the end of a sentence."""
    plain = {key.removeprefix(NET): shape for key, shape in shapes.items()}
    if any("lora_" in key or key.endswith((".lokr_w1", ".hada_w1_a")) for key in shapes):
        return "is a LoRA, not a base model"
    if all(".motion_modules." in key for key in shapes):
        return KINDS_OF_FILES[MOTION]
    if any(key.startswith(("down_blocks.", "unet.down_blocks.")) for key in shapes):
        return "is a network in diffusers' layout, without its text encoders"
    for pattern, what in KINDS_OF_FILES.items():
        if any(re.match(pattern, key) for key in shapes) and "input_blocks.0.0.weight" not in plain:
            return what
    if "input_blocks.0.0.weight" in plain:
        return _describe_network(plain)
    other = name_other_model(shapes)
    return f"is {other}" if other else "has no network like Stable Diffusion's"


def _describe_network(plain: Shapes) -> str:
    """What a file is whose network resembles Stable Diffusion's, but that can't be trained on."""
    channels = plain["input_blocks.0.0.weight"][1]
    if any("time_stack" in key or "time_mixer" in key for key in plain):
        return "is a video model (Stable Video Diffusion)"
    if channels != 4:
        return describe_inputs(channels)
    widths = {shape[1] for key, shape in plain.items() if key.endswith("attn2.to_k.weight")}
    whose = next((kind for width, kind in CONTEXT.items() if width in widths), "")
    if whose == CONTEXT[1280]:
        return "is the SDXL refiner, which only finishes pictures of SDXL"
    return f"holds the network (UNet) alone{f', of {whose}' if whose else ''}: its text encoders and VAE are missing"
