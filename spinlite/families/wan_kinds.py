"""The kind Wan 2.1 T2V 1.3B: files, sizes and names, without torch."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from spinlite.families import record, t5
from spinlite.families.flow_kinds import Readers, judge_by_prefix, lora_keys, prefix_of
from spinlite.families.picture import ClipRule
from spinlite.families.record import CONFIGS, Files, Geometry, LoraNames, Place, Record, Shapes, read_config

CONFIG = "wan"
PARTS = {
    "transformer": "diffusers.WanTransformer3DModel", "vae": "diffusers.AutoencoderKLWan",
    "text_encoder": "transformers.UMT5EncoderModel", "tokenizer": "transformers.AutoTokenizer",
}  # fmt: skip
BLOCK = {  # a block's layers: diffusers' names -> the original ones
    "norm2": "norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
    **{
        f"{theirs}.{leaf}": f"{own}.{short}"
        for theirs, own in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for leaf, short in (
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("norm_q", "norm_q"), ("norm_k", "norm_k"),
        )
    },
}  # fmt: skip
TOP = {
    "patch_embedding": "patch_embedding", "proj_out": "head.head", "condition_embedder.time_proj": "time_projection.1",
    **{
        f"condition_embedder.{what}_embedder.linear_{i}": f"{what}_embedding.{place}"
        for what in ("time", "text") for i, place in ((1, 0), (2, 2))
    },
}  # fmt: skip
LENGTH = 512  # tokens that the text encoder reads, the one that ends a caption among them
SIDE = 640  # px: as many as 832 x 480, the model's own size
MARK = "head.modulation"
VAES = ("decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma")  # original, diffusers
OTHERS = ("img_emb.proj.0.weight", "vace_blocks.0.after_proj.bias", "blocks.0.cross_attn.k_img.weight")  # other tasks
READERS: Readers = {
    "ComfyUI, SwarmUI": [("ldm", "diffusion_model."), ("original", "lora_unet_")],
    "diffusers": [("ldm", "diffusion_model."), ("original", "lora_unet_"), ("dotted", "transformer.")],
    "A1111 1.10": [], "Forge": [], "InvokeAI": [], "sd-scripts": [],  # InvokeAI has Wan 2.2 alone
}  # fmt: skip


def native(name: str) -> Place:
    """A weight's name in diffusers -> its place in the file that Wan's authors publish. Raises KeyError if it has none."""
    module, _, leaf = name.rpartition(".")
    match module.split(".", 2):
        case ["blocks", number] if leaf == "scale_shift_table":
            return Place(f"blocks.{number}.modulation")
        case ["blocks", number, inner]:
            return Place(f"blocks.{number}.{BLOCK[inner]}.{leaf}")
        case _:
            return Place("head.modulation" if name == "scale_shift_table" else f"{TOP[module]}.{leaf}")


def layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(module, shape) of every linear layer of diffusers' WanTransformer3DModel, (out, in)."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    embedder = "condition_embedder"
    yield f"{embedder}.time_embedder.linear_1", (width, config["freq_dim"])
    yield f"{embedder}.time_embedder.linear_2", (width, width)
    yield f"{embedder}.time_proj", (6 * width, width)
    yield f"{embedder}.text_embedder.linear_1", (width, config["text_dim"])
    yield f"{embedder}.text_embedder.linear_2", (width, width)
    for i in range(config["num_layers"]):
        for attention in ("attn1", "attn2"):
            for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"blocks.{i}.{attention}.{leaf}", (width, width)
        yield f"blocks.{i}.ffn.net.0.proj", (config["ffn_dim"], width)
        yield f"blocks.{i}.ffn.net.2", (width, config["ffn_dim"])
    yield "proj_out", (config["out_channels"] * 4, width)


@cache
def _published() -> Shapes:
    return dict(layers(read_config(CONFIGS / CONFIG, "transformer")))


def _width(config: Mapping[str, Any]) -> int | None:
    heads, each = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * each if isinstance(heads, int) and isinstance(each, int) else None


def _is_file(shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    """Wan 2.1's larger models are wider, 2.2's have other channels, and those for other tasks have tensors of their own."""
    prefix = prefix_of(shapes, MARK)
    if prefix is None or any(f"{prefix}{key}" in shapes for key in OTHERS):
        return False
    config = read_config(record.CONFIGS / CONFIG, "transformer")
    return shapes.get(f"{prefix}patch_embedding.weight", ())[:2] == (_width(config), config["in_channels"])


def _is_folder(net: Mapping[str, Any]) -> bool:
    config = read_config(record.CONFIGS / CONFIG, "transformer")
    plain = net.get("_class_name") == config["_class_name"] and not net.get("image_dim") and not net.get("added_kv_proj_dim")
    return plain and net.get("in_channels") == config["in_channels"] and _width(net) == _width(config)


def _is_part(part: str, shapes: Shapes) -> bool:
    """Wan 2.2's VAE has more channels; T5 has a relative bias in its first layer alone, UMT5 in each."""
    if part == "vae":
        out = shapes.get("conv2.weight") or shapes.get("post_quant_conv.weight") or (0,)
        return any(key in shapes for key in VAES) and out[0] == read_config(record.CONFIGS / CONFIG, "vae")["z_dim"]
    wide = shapes.get("shared.weight", (0,))[-1] == read_config(record.CONFIGS / CONFIG, "text_encoder")["d_model"]
    return wide and "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes


def _rename(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The VAE has names of its own; the text encoder's are transformers'."""
    if part == "text_encoder" or VAES[0] not in tensors:
        return tensors
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers(tensors)


def _tokenizer(part: str) -> Any:
    return t5.build_tokenizer()


FILES = Files(
    MARK, native, (), {"vae": "wan_2.1_vae.safetensors", "text_encoder": "umt5_xxl_fp16.safetensors"}, _is_part, _rename,
    _tokenizer, partial(t5.build_counter, LENGTH - 1), vocabulary="spiece_model",
)  # fmt: skip
GEOMETRY = Geometry(
    side=lambda config: SIDE,
    factor=lambda config: 2 ** len(config("vae")["temperal_downsample"]),
    halved=lambda config: config("transformer")["patch_size"][-1] * 2 ** len(config("vae")["temperal_downsample"]),
)
NAMES = LoraNames(
    _published, partial(lora_keys, native=native), judge_by_prefix(READERS), {}, version="wan2.1",
    architecture="wan-2_1-text2video-1_3b", written=lambda module: f"diffusion_model.{native(f'{module}.weight').key[:-7]}",
)  # fmt: skip
WAN = Record(
    "Wan 2.1 T2V 1.3B", "wan", "families.wan:Wan", CONFIG, PARTS, "transformer", "transformer", GEOMETRY, NAMES,
    layout="families.flow_layout", hub=("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",), is_file=_is_file, is_folder=_is_folder,
    note="its clips have 17 frames at most here (model.frames), at 16 a second; pictures are clips of one frame", files=FILES,
    clips=ClipRule(fps=16.0, step=4, most=17),
)  # fmt: skip
