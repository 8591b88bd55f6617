"""The kinds FLUX.2 [klein] base 4B and 9B: files, sizes and names, without torch."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from spinlite.families import record
from spinlite.families.flow_kinds import Readers, judge_by_prefix, lora_keys, prefix_of
from spinlite.families.qwen import build_counter, build_tokenizer
from spinlite.families.record import CONFIGS, Config, Files, Geometry, LoraNames, Place, Record, Shapes, read_config

PARTS = {
    "transformer": "diffusers.Flux2Transformer2DModel", "vae": "diffusers.AutoencoderKLFlux2",
    "text_encoder": "transformers.Qwen3Model", "tokenizer": "transformers.Qwen2Tokenizer",
}  # fmt: skip
DOUBLE = {  # a double block's layers: diffusers' names -> the original ones
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm", "attn.to_out.0": "img_attn.proj",
    "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2", "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm", "attn.to_add_out": "txt_attn.proj", "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}  # fmt: skip
JOINED = {  # three layers in one matrix
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1), "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 1), "attn.add_v_proj": ("txt_attn.qkv", 2),
}  # fmt: skip
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2", "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}  # fmt: skip
TOP = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin", "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
LENGTH, TEMPLATE = 512, 12  # tokens that the text encoder reads, and how many of them the chat template takes
SHARED = "single_stream_modulation"
MARK = f"{SHARED}.lin.weight"  # FLUX.1 has none
READERS: Readers = {
    "ComfyUI, SwarmUI": [("dotted", "transformer."), ("dotted", ""), ("ldm", ""), ("blocks", ""), ("original", "")],
    "diffusers": [("dotted", "transformer."), ("ldm", "diffusion_model."), ("original", "lora_unet_")],
    "InvokeAI": [("dotted", "transformer."), ("dotted", "transformer_blocks"), ("dotted", "single_")],
    "A1111 1.10": [], "Forge": [], "sd-scripts": [],
}  # fmt: skip


def native(name: str) -> Place:
    """A weight's name in diffusers -> its place in the file that Black Forest Labs publish. Raises KeyError if it has none."""
    module, _, leaf = name.rpartition(".")
    match module.split(".", 2):
        case ["transformer_blocks", number, inner]:
            shared, third = JOINED.get(inner, ("", None))
            place, norm = f"double_blocks.{number}.{shared or DOUBLE[inner]}", ".norm_" in inner
        case ["single_transformer_blocks", number, inner]:
            place, third, norm = f"single_blocks.{number}.{SINGLE[inner]}", None, ".norm_" in inner
        case _:
            place, third, norm = TOP[module], None, False
    return Place(f"{place}.{'scale' if norm else leaf}", third)


def layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(module, (out, in)) of every linear layer of diffusers' Flux2Transformer2DModel."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    hidden = int(width * config["mlp_ratio"])
    for i in (1, 2):
        yield (
            f"time_guidance_embed.timestep_embedder.linear_{i}",
            (width, config["timestep_guidance_channels"] if i == 1 else width),
        )
    for name, sets in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6), (SHARED, 3)):
        yield f"{name}.linear", (sets * width, width)
    yield "x_embedder", (width, config["in_channels"])
    yield "context_embedder", (width, config["joint_attention_dim"])
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        for leaf in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield f"{block}.attn.{leaf}", (width, width)
        for side in ("ff", "ff_context"):
            yield f"{block}.{side}.linear_in", (2 * hidden, width)
            yield f"{block}.{side}.linear_out", (width, hidden)
    for i in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{i}.attn"
        yield f"{block}.to_qkv_mlp_proj", (3 * width + 2 * hidden, width)
        yield f"{block}.to_out", (width, width + hidden)
    yield "norm_out.linear", (2 * width, width)
    yield "proj_out", (config["in_channels"], width)


@cache
def _published(configs: str) -> Shapes:
    return dict(layers(read_config(CONFIGS / configs, "transformer")))


def _is_file(configs: str, shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    prefix = prefix_of(shapes, MARK)
    if prefix is None:
        return False
    config = read_config(record.CONFIGS / configs, "transformer")
    return shapes.get(f"{prefix}txt_in.weight", (0,))[-1] == config["joint_attention_dim"]


def _is_folder(configs: str, net: Mapping[str, Any]) -> bool:
    if net.get("_class_name") != "Flux2Transformer2DModel" or net.get("guidance_embeds"):
        return False
    return net.get("joint_attention_dim") == read_config(record.CONFIGS / configs, "transformer")["joint_attention_dim"]


def _is_part(part: str, shapes: Shapes) -> bool:
    """FLUX.2's VAE has a batch norm; its text encoder is a Qwen3, told from others by its width, which `load` checks."""
    if part == "vae":
        return "bn.running_mean" in shapes and any(key.startswith("decoder.") for key in shapes)
    return "model.layers.0.self_attn.q_norm.weight" in shapes


def _rename(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The VAE's original names are those of other LDM models, and a batch norm; the text encoder's begin with "model."."""
    if part == "text_encoder":
        return {key.removeprefix("model."): value for key, value in tensors.items()}
    if not any(key.startswith("encoder.down.") for key in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    plain = {_outside(key): value for key, value in tensors.items()}
    config = read_config(record.CONFIGS / "klein-4b", "vae")
    return convert_ldm_vae_checkpoint(plain, config) | {key: plain[key] for key in plain if key.startswith("bn.")}


def _outside(key: str) -> str:
    return key.replace("encoder.quant_conv", "quant_conv").replace("decoder.post_quant_conv", "post_quant_conv")


def _tokenizer(part: str) -> Any:
    return build_tokenizer()


FILES = Files(
    MARK, native, ("norm_out.linear.weight",), {"vae": "flux2-vae.safetensors", "text_encoder": "qwen_3_4b.safetensors"},
    _is_part, _rename, _tokenizer, partial(build_counter, LENGTH - TEMPLATE),
)  # fmt: skip
GEOMETRY = Geometry(
    side=lambda config: config("vae")["sample_size"],
    factor=lambda config: 2 * 2 ** (len(config("vae")["block_out_channels"]) - 1),
    halved=lambda config: 2 * 2 ** (len(config("vae")["block_out_channels"]) - 1),
)


def _distilled(name: str, config: Config) -> str:
    """As the published file without "base" is called; a folder says it in its model_index.json."""
    return "by its name" if re.search(r"flux[.-]?2-klein-[49]b", name, re.IGNORECASE) and "base" not in name.lower() else ""


def _klein(title: str, configs: str, hub: str, note: str) -> Record:
    names = LoraNames(
        partial(_published, configs), partial(lora_keys, native=native), judge_by_prefix(READERS), {}, version="flux2",
        architecture=f"flux.2-{configs}", written=lambda module: f"transformer.{module}",
    )  # fmt: skip
    return Record(
        title, "klein", "families.flux2:Klein", configs, PARTS, "transformer", "transformer", GEOMETRY, names,
        layout="families.flow_layout", hub=(hub,), is_file=partial(_is_file, configs), is_folder=partial(_is_folder, configs),
        note=note, files=FILES, distilled=_distilled,
    )  # fmt: skip


KLEIN_4B = _klein(
    "FLUX.2 [klein] base 4B", "klein-4b", "black-forest-labs/FLUX.2-klein-base-4B",
    "its LoRA is for FLUX.2 [klein] 4B too, which makes pictures in 4 steps",
)  # fmt: skip
KLEIN_9B = _klein(
    "FLUX.2 [klein] base 9B", "klein-9b", "black-forest-labs/FLUX.2-klein-base-9B",
    "its licence (FLUX non-commercial) forbids commercial use; its LoRA is for FLUX.2 [klein] 9B too",
)  # fmt: skip
