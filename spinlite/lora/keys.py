"""The keys of a LoRA file: which module a tensor belongs to, and which of the module's tensors it is.

Kohya joins a module's name by underscores (`lora_unet_down_blocks_0_...`); diffusers, peft and ComfyUI write it with dots, with
several beginnings. Here modules get one name each: kohya's where the file has it or the original (LDM) names of blocks, else
diffusers' full name ("unet.down_blocks...").
"""

import re

ENDS = {  # end of a key -> the tensor; the first end that fits counts
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".lora_A": "down", ".lora_B": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".dora_scale": "magnitude", ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
OTHER = re.compile(r"(.+)\.(?:(hada|lokr|oft)_[\w.]+|(diff|on_input))")  # a change that is not a product of two
OTHERS = {"hada": "LoHa", "lokr": "LoKr", "oft": "OFT", "diff": "full difference", "on_input": "IA3"}
TEXT = re.compile(r"text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])")
LDM = re.compile(  # ComfyUI's names begin with diffusion_model
    r"(?:model\.)?(?:diffusion_model\.|unet\.)?((?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.\d.*)"
)
CLIP = re.compile(r"(?:text_encoders\.)?clip_([lgh])\.(?:transformer\.)?(text_model\..+)")  # ComfyUI's and OneTrainer's names
OLD_TEXT = re.compile(r"(text_encoder.*\.self_attn)\.to_(q|k|v|out)")  # diffusers' of 2023
LAYER = re.compile(r"lora_(te|te1|te2)_(?:text_model_)?encoder_layers_(\d+)_(self_attn|mlp)_(\w+)")
ENCODERS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
BLOCKS = ("down_blocks.", "up_blocks.", "mid_block.")  # in the order in which cloneofsimo's files number their modules
NUMBERED = re.compile(r"(unet|text_encoder):(\d+):(up|down)")  # cloneofsimo's keys


def split_key(key: str) -> tuple[str, str, str] | None:
    """(the module's name, the tensor's, the module's name in the file) of a key; None if it is not a LoRA's."""
    if numbered := NUMBERED.fullmatch(key):
        name = f"{numbered[1]}:{numbered[2]}"
        return name, numbered[3], name
    for end, tensor in ENDS.items():
        if key.endswith(end):
            in_file = key.removesuffix(end)
            return _full_name(in_file), tensor, in_file
    if other := OTHER.fullmatch(key):
        return _full_name(other[1]), OTHERS[other[2] or other[3]], other[1]
    return None


def text_encoder_module(name: str) -> str | None:
    """The full name of a text encoder's module from kohya's, e.g. "lora_te1_text_model_encoder_layers_0_mlp_fc1"; or None."""
    if not (layer := LAYER.fullmatch(name)):
        return None
    return f"{ENCODERS[layer[1]]}.text_model.encoder.layers.{layer[2]}.{layer[3]}.{layer[4]}"


def _full_name(name: str) -> str:
    if name.startswith("lora_"):
        return name
    name = name.replace("base_model.model.", "").replace(".processor.", ".")
    if ldm := LDM.fullmatch(name):
        return "lora_unet_" + ldm[1].replace(".", "_")
    if clip := CLIP.fullmatch(name):
        return f"text_encoder{'_2' if clip[1] == 'g' else ''}.{clip[2]}"
    if name.startswith(BLOCKS):
        name = f"unet.{name}"
    name = OLD_TEXT.sub(r"\1.\2_proj", name)
    if name.startswith("unet.") and name.endswith(".to_out"):
        name += ".0"
    return re.sub(r"^(text_encoder(?:_2)?)\.encoder\.", r"\1.text_model.encoder.", name)
