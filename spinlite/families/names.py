"""The three names of a module: in diffusers, in the original (LDM, SGM) layout, and in kohya's LoRA files.

A module's full name is diffusers' own: "unet.down_blocks.0…", "text_encoder.text_model.encoder…", "text_encoder_2.text_model…".
"""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from spinlite.families.record import Kind

if TYPE_CHECKING:
    from torch import nn

RESNET = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_name(module: str, xl: bool) -> str:
    """diffusers' name of a UNet module -> the original one: down_blocks.1.attentions.0.proj_in -> input_blocks.4.1.proj_in.

    A level has 3 blocks: 2 layers and a downsampler on the way in; 3 layers on the way out, the last with the upsampler. The
    first upsampler follows attention in SDXL; in SD 1.x and 2.x it follows a layer without attention.
    """
    if module in TOP:
        return TOP[module]
    parts = module.split(".")
    if parts[0] == "mid_block":
        block, kind, rest = f"middle_block.{MIDDLE['.'.join(parts[1:3])]}", parts[1], parts[3:]
    else:
        side, level, kind, layer, rest = parts[0], int(parts[1]), parts[2], int(parts[3]), parts[4:]
        match kind:
            case "downsamplers":
                return f"input_blocks.{3 * level + 3}.0.op"
            case "upsamplers":
                return f"output_blocks.{3 * level + 2}.{2 if xl or level else 1}.conv"
        place = f"input_blocks.{3 * level + 1 + layer}" if side == "down_blocks" else f"output_blocks.{3 * level + layer}"
        block = f"{place}.{int(kind == 'attentions')}"
    return ".".join([block, *([RESNET[rest[0]]] if kind == "resnets" else rest)])


def kohya_name(name: str, kind: Kind) -> str:
    """A module's full name -> its key in kohya's layout, as every program that reads that layout expects it.

    Blocks of SDXL's UNet have their original names there, as sd-scripts writes them; SD 1.x and 2.x have diffusers' names.
    """
    part, _, module = name.partition(".")
    if part == "unet":
        return "lora_unet_" + (original_name(module, True) if kind == "sdxl" else module).replace(".", "_")
    encoder = {"text_encoder": "te1" if kind == "sdxl" else "te", "text_encoder_2": "te2"}[part]
    return f"lora_{encoder}_{module.replace('.', '_')}"


def kohya_keys(modules: Iterable[str], kind: Kind) -> dict[str, str]:
    """Every key that a UNet module may have in kohya's layout, with either style of block names -> its full name."""
    keys: dict[str, str] = {}
    for module in modules:
        keys[f"lora_unet_{module.replace('.', '_')}"] = f"unet.{module}"
        with contextlib.suppress(KeyError, ValueError, IndexError):  # only published networks have original names
            keys[f"lora_unet_{original_name(module, kind == 'sdxl').replace('.', '_')}"] = f"unet.{module}"
    return keys


def module_shapes(net: "nn.Module") -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA may change, by module: linear (out, in), convolution (out, in, k, k)."""
    from torch import nn  # here, so that names alone need no torch

    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.out_features, module.in_features)  # not the weight's own shape: quantised weights are packed
        elif isinstance(module, nn.Conv2d):
            shapes[name] = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return shapes
