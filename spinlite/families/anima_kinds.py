"""The kind Anima: Cosmos-Predict2 2B that reads Qwen3-0.6B and T5's tokens; files, sizes and names, without torch."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from spinlite.families import record, t5
from spinlite.families.flow_kinds import Readers, judge_by_prefix, lora_keys, prefix_of
from spinlite.families.qwen import build_tokenizer
from spinlite.families.record import CONFIGS, Files, Geometry, LoraNames, Place, Record, Shapes, read_config

PARTS = {
    "transformer": "diffusers.CosmosTransformer3DModel", "vae": "diffusers.AutoencoderKLQwenImage",
    "text_encoder": "transformers.Qwen3Model", "text_conditioner": "diffusers.AnimaTextConditioner",
    "tokenizer": "transformers.Qwen2TokenizerFast", "t5_tokenizer": "transformers.T5TokenizerFast",
}  # fmt: skip
ATTENTION = {
    "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj", "norm_q": "q_norm", "norm_k": "k_norm",
}  # fmt: skip
SIDES = {"attn1": "self_attn", "attn2": "cross_attn"}
MODULATED = {"norm1": "self_attn", "norm2": "cross_attn", "norm3": "mlp"}  # by what they change the input of
BLOCK = {
    **{f"{mine}.{a}": f"{theirs}.{b}" for mine, theirs in SIDES.items() for a, b in ATTENTION.items()},
    **{f"{mine}.linear_{i}": f"adaln_modulation_{what}.{i}" for mine, what in MODULATED.items() for i in (1, 2)},
    "ff.net.0.proj": "mlp.layer1", "ff.net.2": "mlp.layer2",
}  # fmt: skip
TOP = {
    "patch_embed.proj": "x_embedder.proj.1", "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2", "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1", "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}  # fmt: skip
LENGTH = 512  # tokens of a caption, for Qwen and for T5, whose last one ends it
CONDITIONER = "llm_adapter."  # the text conditioner, in the network's file
MARK = f"{CONDITIONER}blocks.0.cross_attn.q_proj.weight"  # Cosmos-Predict2 itself has none
SIDE = 1024  # px; no setting says it
READERS: Readers = {
    "ComfyUI, SwarmUI": [("ldm", "diffusion_model."), ("original", "lora_unet_")],
    "diffusers": [("dotted", "transformer."), ("ldm", "diffusion_model.")],
    "InvokeAI": [("ldm", "diffusion_model."), ("ldm", "transformer."), ("original", "lora_unet_")],
    "A1111 1.10": [], "Forge": [], "sd-scripts": [("original", "lora_unet_")],
}  # fmt: skip


def native(name: str) -> Place:
    """A weight's name in diffusers -> its place in the published file. Raises KeyError if it has none."""
    module, _, leaf = name.rpartition(".")
    match module.split(".", 2):
        case ["transformer_blocks", number, inner]:
            return Place(f"blocks.{number}.{BLOCK[inner]}.{leaf}")
        case _:
            return Place(f"{TOP[module]}.{leaf}")


def layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(module, (out, in)) of every linear layer of diffusers' CosmosTransformer3DModel, as Anima sets it up."""
    width, small = config["attention_head_dim"] * config["num_attention_heads"], config["adaln_lora_dim"]
    hidden, patch = int(width * config["mlp_ratio"]), 4
    yield "patch_embed.proj", (width, patch * (config["in_channels"] + 1))
    yield "time_embed.t_embedder.linear_1", (width, width)
    yield "time_embed.t_embedder.linear_2", (3 * width, width)
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        for side, columns in (("attn1", width), ("attn2", config["text_embed_dim"])):
            for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"{block}.{side}.{leaf}", (width, columns if leaf in ("to_k", "to_v") else width)
        for norm in MODULATED:
            yield f"{block}.{norm}.linear_1", (small, width)
            yield f"{block}.{norm}.linear_2", (3 * width, small)
        yield f"{block}.ff.net.0.proj", (hidden, width)
        yield f"{block}.ff.net.2", (width, hidden)
    yield "norm_out.linear_1", (small, width)
    yield "norm_out.linear_2", (2 * width, small)
    yield "proj_out", (patch * config["out_channels"], width)


@cache
def _published() -> Shapes:
    return dict(layers(read_config(CONFIGS / "anima", "transformer")))


def _lora_keys(modules: Iterable[str]) -> Mapping[str, str | tuple[str, ...]]:
    """InvokeAI also reads original names after "transformer."."""
    modules = list(modules)
    more = {f"transformer.{native(f'{name}.weight').key.removesuffix('.weight')}": f"unet.{name}" for name in modules}
    return more | lora_keys(modules, native)


def _written(module: str) -> str:
    return f"diffusion_model.{native(f'{module}.weight').key.removesuffix('.weight')}"


def _is_file(shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    return prefix_of(shapes, MARK) is not None


def _is_folder(net: Mapping[str, Any]) -> bool:
    published = read_config(record.CONFIGS / "anima", "transformer")
    return all(net.get(key) == published[key] for key in ("_class_name", "num_attention_heads", "text_embed_dim"))


def _is_part(part: str, shapes: Shapes) -> bool:
    """Its VAE has the shapes of Wan 2.1's; its text encoder is told from larger ones of Qwen by its width."""
    config = read_config(record.CONFIGS / "anima", part)
    if part == "vae":
        last = next((shapes[key] for key in ("conv2.weight", "post_quant_conv.weight") if key in shapes), (0,))
        return last[0] == config["z_dim"] and len(last) == 5
    head = shapes.get("model.layers.0.self_attn.q_norm.weight")
    return head is not None and shapes.get("model.embed_tokens.weight", (0,))[-1] == config["hidden_size"]


def _rename(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The VAE's original names are those of Wan's; the text encoder's begin with "model."."""
    if part == "text_encoder":
        return {key.removeprefix("model."): value for key, value in tensors.items()}
    if "conv2.weight" not in tensors:
        return tensors
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers(tensors)


def _tokenizer(part: str) -> Any:
    return t5.build_tokenizer() if part.startswith("t5") else build_tokenizer()


ANIMA = Record(
    "Anima", "anima", "families.anima:Anima", "anima", PARTS, "transformer", "transformer",
    Geometry(
        side=lambda config: SIDE,
        factor=lambda config: 2 ** len(config("vae")["temperal_downsample"]),
        halved=lambda config: config("transformer")["patch_size"][-1] * 2 ** len(config("vae")["temperal_downsample"]),
    ),
    LoraNames(_published, _lora_keys, judge_by_prefix(READERS), {}, version="anima", architecture="anima", written=_written),
    layout="families.flow_layout", hub=("circlestone-labs/Anima-Base-v1.0-Diffusers",), is_file=_is_file, is_folder=_is_folder,
    note="its licence (CircleStone non-commercial) is for the model; its pictures may be used commercially",
    files=Files(
        MARK, native, (), {"vae": "qwen_image_vae.safetensors", "text_encoder": "qwen_3_06b_base.safetensors"},
        _is_part, _rename, _tokenizer, partial(t5.build_counter, LENGTH - 1), {"text_conditioner": CONDITIONER},
    ),
)  # fmt: skip
