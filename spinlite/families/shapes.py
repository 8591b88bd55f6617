"""The shapes of a UNet's weights, from its settings alone: milliseconds, where building the network takes seconds."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from spinlite.families.record import CONFIGS

NORMED = {  # the end of a layer's name -> that of the norm before it
    ".conv1": ".norm1", ".conv2": ".norm2", ".proj_in": ".norm", "conv_out": "conv_norm_out",
    ".attn1.to_q": ".norm1", ".attn2.to_q": ".norm2", ".ff.net.0.proj": ".norm3",
}  # fmt: skip
Named = Iterator[tuple[str, tuple[int, ...]]]


@cache
def unet_published(folder: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a published UNet's weights that a LoRA may change, by diffusers' module names. `folder` lies in `configs/`."""
    text = (CONFIGS / folder / "unet" / "config.json").read_text(encoding="utf-8")
    return dict(unet_shapes(json.loads(text)))


def unet_shapes(config: Mapping[str, Any]) -> Named:
    """(module, shape) of every linear layer (out, in) and convolution (out, in, k, k) of diffusers' UNet2DConditionModel."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    time, text = 4 * widths[0], config["cross_attention_dim"]
    depth = config.get("transformer_layers_per_block", 1)
    depths = depth if isinstance(depth, list) else [depth] * len(widths)
    linear = config.get("use_linear_projection", False)
    last = len(widths) - 1

    def block(name: str, inputs: list[int], out: int, blocks: int) -> Named:
        """Layers, each with attention if there are `blocks` of it."""
        for i, width in enumerate(inputs):
            if blocks:
                yield from _attention(f"{name}.attentions.{i}", out, text, blocks, linear)
            yield from _resnet(f"{name}.resnets.{i}", width, out, time)

    yield "conv_in", (widths[0], config["in_channels"], 3, 3)
    yield from _embedding("time_embedding", widths[0], time)
    if config.get("addition_embed_type") == "text_time":
        yield from _embedding("add_embedding", config["projection_class_embeddings_input_dim"], time)
    for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
        blocks = depths[i] if "CrossAttn" in config["down_block_types"][i] else 0
        yield from block(f"down_blocks.{i}", [before] + [width] * (layers - 1), width, blocks)
        if i < last:
            yield f"down_blocks.{i}.downsamplers.0.conv", (width, width, 3, 3)
    for i in range(len(widths)):
        level = last - i
        width, above, below = widths[level], widths[min(level + 1, last)], widths[max(level - 1, 0)]
        skips = [width] * layers + [below]
        blocks = depths[level] if "CrossAttn" in config["up_block_types"][i] else 0
        inputs = [main + skip for main, skip in zip([above] + [width] * layers, skips, strict=True)]
        yield from block(f"up_blocks.{i}", inputs, width, blocks)
        if level:
            yield f"up_blocks.{i}.upsamplers.0.conv", (width, width, 3, 3)
    yield from block("mid_block", [widths[-1]], widths[-1], depths[-1])
    yield from _resnet("mid_block.resnets.1", widths[-1], widths[-1], time)
    yield "conv_out", (config["out_channels"], widths[0], 3, 3)


def unet_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of all weights of diffusers' UNet2DConditionModel: those of `unet_shapes`, their biases, and the norms."""
    for name, _ in unet_shapes(config):
        yield f"{name}.weight"
        if not name.endswith((".to_q", ".to_k", ".to_v")):
            yield f"{name}.bias"
        for layer, norm in NORMED.items():
            if name.endswith(layer):
                yield from (f"{name.removesuffix(layer)}{norm}.{leaf}" for leaf in ("weight", "bias"))


def _embedding(name: str, inputs: int, out: int) -> Named:
    yield f"{name}.linear_1", (out, inputs)
    yield f"{name}.linear_2", (out, out)


def _resnet(name: str, inputs: int, out: int, time: int) -> Named:
    yield f"{name}.conv1", (out, inputs, 3, 3)
    yield f"{name}.time_emb_proj", (out, time)
    yield f"{name}.conv2", (out, out, 3, 3)
    if inputs != out:
        yield f"{name}.conv_shortcut", (out, inputs, 1, 1)


def _attention(name: str, width: int, text: int, blocks: int, linear: bool) -> Named:
    projection = (width, width) if linear else (width, width, 1, 1)
    yield f"{name}.proj_in", projection
    for i in range(blocks):
        for attention, inputs in (("attn1", width), ("attn2", text)):
            block = f"{name}.transformer_blocks.{i}.{attention}"
            yield f"{block}.to_q", (width, width)
            yield f"{block}.to_k", (width, inputs)
            yield f"{block}.to_v", (width, inputs)
            yield f"{block}.to_out.0", (width, width)
        yield f"{name}.transformer_blocks.{i}.ff.net.0.proj", (8 * width, width)
        yield f"{name}.transformer_blocks.{i}.ff.net.2", (width, 4 * width)
    yield f"{name}.proj_out", projection
