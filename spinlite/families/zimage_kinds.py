"""The kind Z-Image: a transformer of 6 billion weights that reads Qwen3-4B; files, sizes and names, without torch."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

from spinlite.families import record
from spinlite.families.flow_kinds import Readers, judge_by_prefix, lora_keys, prefix_of
from spinlite.families.qwen import build_counter, build_tokenizer
from spinlite.families.record import CONFIGS, Config, Files, Geometry, LoraNames, Place, Record, Shapes, read_config

PARTS = {
    "transformer": "diffusers.ZImageTransformer2DModel", "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.Qwen3Model", "tokenizer": "transformers.Qwen2Tokenizer",
}  # fmt: skip
RENAMED = {  # ends of names, where they are not diffusers' -> the original ones, and which third of a shared matrix it is
    "attention.to_q": ("attention.qkv", 0), "attention.to_k": ("attention.qkv", 1), "attention.to_v": ("attention.qkv", 2),
    "attention.to_out.0": ("attention.out", None), "attention.norm_q": ("attention.q_norm", None),
    "attention.norm_k": ("attention.k_norm", None), "all_x_embedder.2-1": ("x_embedder", None),
    "all_final_layer.2-1.linear": ("final_layer.linear", None),
    "all_final_layer.2-1.adaLN_modulation.1": ("final_layer.adaLN_modulation.1", None),
}  # fmt: skip
LENGTH, TEMPLATE = 512, 8  # tokens that the text encoder reads, and how many of them the chat template takes
TIME = 256, 1024  # numbers that say the time, and the width in between; no setting says them
MARK = "cap_pad_token"  # Lumina 2, which is built alike, has none
READERS: Readers = {
    "ComfyUI, SwarmUI": [("dotted", ""), ("ldm", ""), ("original", "lora_unet_")],
    "diffusers": [
        ("dotted", "transformer."), ("dotted", "diffusion_model."), ("original", "lora_unet_"), ("blocks", "lora_unet_"),
    ],
    "InvokeAI": [("dotted", "transformer."), ("dotted", "diffusion_model.")],
    "A1111 1.10": [], "Forge": [], "sd-scripts": [],
}  # fmt: skip


def native(name: str) -> Place:
    """A weight's name in diffusers -> its place in the published file."""
    module, _, leaf = name.rpartition(".")
    for mine, (theirs, third) in RENAMED.items():
        if module.endswith(mine):
            return Place(f"{module.removesuffix(mine)}{theirs}.{leaf}", third)
    return Place(name)


def layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(module, (out, in)) of every linear layer of diffusers' ZImageTransformer2DModel."""
    width, numbers = config["dim"], 4 * config["in_channels"]
    hidden, small = int(width / 3 * 8), min(width, TIME[0])
    yield "all_x_embedder.2-1", (width, numbers)
    yield "all_final_layer.2-1.linear", (numbers, width)
    yield "all_final_layer.2-1.adaLN_modulation.1", (width, small)
    yield "t_embedder.mlp.0", (TIME[1], TIME[0])
    yield "t_embedder.mlp.2", (small, TIME[1])
    yield "cap_embedder.1", (width, config["cap_feat_dim"])
    refiners, main = config["n_refiner_layers"], config["n_layers"]
    depths = {"noise_refiner": refiners, "context_refiner": refiners, "layers": main}
    for block in (f"{name}.{i}" for name, depth in depths.items() for i in range(depth)):
        for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
            yield f"{block}.attention.{leaf}", (width, width)
        for leaf in ("w1", "w2", "w3"):
            yield f"{block}.feed_forward.{leaf}", (width, hidden) if leaf == "w2" else (hidden, width)
        if not block.startswith("context"):
            yield f"{block}.adaLN_modulation.0", (4 * width, small)


@cache
def _published() -> Shapes:
    return dict(layers(read_config(CONFIGS / "z-image", "transformer")))


def _is_file(shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    prefix = prefix_of(shapes, MARK)
    if prefix is None:
        return False
    config = read_config(record.CONFIGS / "z-image", "transformer")
    joined = shapes.get(f"{prefix}layers.0.attention.qkv.weight")  # a file with diffusers' names has none
    return joined == (3 * config["dim"], config["dim"])


def _is_folder(net: Mapping[str, Any]) -> bool:
    """Its relative that edits pictures reads them by SigLIP."""
    published = read_config(record.CONFIGS / "z-image", "transformer")
    return not net.get("siglip_feat_dim") and all(net.get(key) == published[key] for key in ("_class_name", "dim", "n_layers"))


def _is_part(part: str, shapes: Shapes) -> bool:
    """Its VAE is FLUX.1's: 16 channels and no batch norm. Its text encoder is told from other sizes of Qwen3 by its width."""
    config = read_config(record.CONFIGS / "z-image", part)
    if part == "vae":
        return shapes.get("decoder.conv_in.weight", (0, 0))[1:2] == (config["latent_channels"],)
    head = shapes.get("model.layers.0.self_attn.q_norm.weight")
    return head is not None and shapes.get("model.embed_tokens.weight", (0,))[-1] == config["hidden_size"]


def _rename(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The VAE's original names are those of other LDM models; the text encoder's begin with "model."."""
    if part == "text_encoder":
        return {key.removeprefix("model."): value for key, value in tensors.items()}
    if not any(key.startswith("encoder.down.") for key in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return convert_ldm_vae_checkpoint(tensors, read_config(record.CONFIGS / "z-image", "vae"))


def _tokenizer(part: str) -> Any:
    return build_tokenizer()


def _distilled(name: str, config: Config) -> str:
    """Turbo has the same weights by name and shape, and samples with half the shift."""
    if "turbo" in name.lower() and not re.search(r"(un|non|de)[-_ ]?(distill?ed[-_ ]?)?turbo", name, re.IGNORECASE):
        return "by its name"
    return "as the shift of 3 in its scheduler says" if config("scheduler").get("shift") == 3 else ""


Z_IMAGE = Record(
    "Z-Image", "z-image", "families.zimage:ZImage", "z-image", PARTS, "transformer", "transformer",
    Geometry(
        side=lambda config: config("vae")["sample_size"],
        factor=lambda config: 2 ** (len(config("vae")["block_out_channels"]) - 1),
        halved=lambda config: 2 * 2 ** (len(config("vae")["block_out_channels"]) - 1),
    ),
    LoraNames(
        _published, partial(lora_keys, native=native), judge_by_prefix(READERS), {}, version="zimage", architecture="z-image",
        written=lambda module: f"diffusion_model.{module}",
    ),
    layout="families.flow_layout", hub=("Tongyi-MAI/Z-Image",), is_file=_is_file, is_folder=_is_folder,
    note="its LoRA is for Z-Image-Turbo too, which makes pictures in 8 steps", distilled=_distilled,
    files=Files(
        MARK, native, (), {"vae": "ae.safetensors", "text_encoder": "qwen_3_4b.safetensors"}, _is_part, _rename, _tokenizer,
        partial(build_counter, LENGTH - TEMPLATE),
    ),
)  # fmt: skip
