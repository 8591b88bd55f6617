"""The kind AnimateDiff: an SD 1.x with a motion module in it. Sizes and names, without torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from spinlite.families.flow_kinds import Readers, judge_by_prefix
from spinlite.families.names import kohya_keys, kohya_name
from spinlite.families.picture import ClipRule
from spinlite.families.record import CONFIGS, LoraNames, Shapes, read_config
from spinlite.families.shapes import unet_published
from spinlite.families.unet_kinds import SD1

if TYPE_CHECKING:
    from spinlite.lora.layouts import Layout  # with torch

ANIMATED = "animatediff"  # the kind
ADAPTER = "motion_adapter"  # the part, by diffusers' name
MODULE = re.compile(r"(?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+\.")
HUB: dict[str, dict[str, Any]] = {  # the authors' motion modules -> what they have other than v3, whose settings ship
    "guoyww/animatediff-motion-adapter-v1-5": {"motion_max_seq_length": 24},
    "guoyww/animatediff-motion-adapter-v1-5-2": {"use_motion_mid_block": True},
    "guoyww/animatediff-motion-adapter-v1-5-3": {},
}
READERS: Readers = {  # of motion LoRAs
    "ComfyUI (AnimateDiff-Evolved)": [("motion", "")], "A1111 (sd-webui-animatediff)": [("motion", "")],
    "diffusers": [("dotted", "unet."), ("processor", "unet.")],
}  # fmt: skip


def is_motion(module: str) -> bool:
    """Whether a module of the network, by diffusers' name, belongs to the motion module."""
    return bool(MODULE.match(module))


def motion_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(module, shape) of every linear layer, (out, in), of diffusers' MotionAdapter with these settings."""
    widths, layers = config["block_out_channels"], config["motion_layers_per_block"]
    places = [(f"down_blocks.{i}", width, layers) for i, width in enumerate(widths)]
    places += [(f"up_blocks.{i}", width, layers + 1) for i, width in enumerate(reversed(widths))]
    places += [("mid_block", widths[-1], 1)] * config["use_motion_mid_block"]
    for place, width, count in places:
        for i in range(count):
            name = f"{place}.motion_modules.{i}"
            block = f"{name}.transformer_blocks.0"
            yield f"{name}.proj_in", (width, width)
            for attention in ("attn1", "attn2"):
                yield from ((f"{block}.{attention}.{leaf}", (width, width)) for leaf in ("to_q", "to_k", "to_v", "to_out.0"))
            yield f"{block}.ff.net.0.proj", (8 * width, width)
            yield f"{block}.ff.net.2", (width, 4 * width)
            yield f"{name}.proj_out", (width, width)


def original_motion_name(module: str) -> str:
    """diffusers' name of a motion module's layer -> the authors': attn1 -> temporal_transformer… attention_blocks.0."""
    start = MODULE.match(module)
    assert start
    rest = module[start.end() :].replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")
    return f"{start[0]}temporal_transformer.{rest}"


def lora_name(name: str, layout: "Layout") -> str:
    """A module's full name -> its key in a LoRA file. "animatediff" is the layout of the authors' motion LoRAs."""
    if layout == "kohya":
        return kohya_name(name, "sd1")
    if layout == "diffusers":
        return name
    stem, _, leaf = original_motion_name(name.removeprefix("unet.")).removesuffix(".0").rpartition(".")
    return f"{stem}.processor.{leaf}_lora"


def lora_keys(modules: Iterable[str]) -> dict[str, str]:
    """Every key that a module may have in LoRA files, other than its full name -> that name."""
    modules = list(modules)
    names = {f"unet.{original_motion_name(module)}": f"unet.{module}" for module in modules if is_motion(module)}
    return names | kohya_keys((module for module in modules if not is_motion(module)), "sd1")


@cache
def _published() -> Shapes:
    config = read_config(CONFIGS / SD1.configs, ADAPTER) | {"use_motion_mid_block": True}
    return unet_published(SD1.configs) | dict(motion_layers(config))


ANIMATEDIFF = replace(
    SD1, title="AnimateDiff on SD 1.x", family=ANIMATED, made_by="families.animatediff:AnimateDiff",
    lora=LoraNames(_published, lora_keys, judge_by_prefix(READERS), SD1.lora.text_widths, SD1.lora.version), hub=(),
    note="its clips have 16 frames (model.frames), at 8 a second; pictures are clips of one frame",
    clips=ClipRule(fps=8.0, step=1, most=16),
)  # fmt: skip
