"""The names that a module goes by: in diffusers, in the original (LDM, SGM) layout, and in kohya's LoRA files.

A module's full name is diffusers': "unet.down_blocks.0…", "text_encoder.text_model.encoder…", "text_encoder_2.text_model…".
"""

from spinlite.families.checkpoint import Kind

RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_name(module: str, xl: bool) -> str:
    """diffusers' name of a UNet's module -> the original one.

    A level is 3 blocks long: 2 layers and a downsampler on the way in, 3 layers on the way out, the last with the
    upsampler: down_blocks.1.attentions.0.proj_in -> input_blocks.4.1.proj_in. The first upsampler stands behind attention
    in SDXL, in SD 1.x and 2.x behind a layer without.
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
    """A module's full name -> what every program that reads kohya's layout looks for.

    Blocks of SDXL's UNet go by their original names, as sd-scripts writes them; those of SD 1.x and 2.x by diffusers'.
    """
    part, _, module = name.partition(".")
    if part == "unet":
        return "lora_unet_" + (original_name(module, True) if kind == "sdxl" else module).replace(".", "_")
    encoder = {"text_encoder": "te1" if kind == "sdxl" else "te", "text_encoder_2": "te2"}[part]
    return f"lora_{encoder}_{module.replace('.', '_')}"
