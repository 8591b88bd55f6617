"""Read a LoRA file that any program wrote, in kohya's, diffusers' (peft and older) or cloneofsimo's layout.

Only safetensors are opened. The result names each module of the base by its full name. Kohya's keys don't hold it (their
underscores can't be split), so they are looked up in a table of the base's modules.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.lora.keys import BLOCKS, NUMBERED, OTHERS, split_key, text_encoder_module
from spinlite.lora.tensors import Lora, Pair

Shapes = Mapping[str, tuple[int, ...]]  # diffusers' name of a UNet module -> the shape of its weight


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a LoRA file, by module and kind ("down", "up", "alpha", …; see `keys`)."""

    path: Path
    layout: str  # "kohya", "diffusers" or "cloneofsimo"
    parts: Mapping[str, Mapping[str, Tensor]]
    written: Mapping[str, str]  # module -> its name in the file
    keys: Mapping[tuple[str, str], str]  # (module, kind) -> the tensor's key in the file
    metadata: Mapping[str, str]
    foreign: list[str]  # keys that are not a LoRA's

    def pair(self, name: str) -> Pair:
        """A module's change. Raises SpinliteError if one of its tensors is missing or they don't fit together."""
        tensors = {kind: tensor.float() for kind, tensor in self.parts[name].items()}
        if "down" not in tensors or "up" not in tensors:
            raise self.error(f"holds half of the module {name} (its up or down matrix is missing)", "download it again")
        down, up = tensors["down"], tensors["up"]
        if "mid" in tensors:  # LyCORIS' Tucker form of a convolution
            down = torch.einsum("rskl,si->rikl", tensors["mid"], down.flatten(1))
        if up.ndim not in (2, 4) or down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
            shapes = f"{tuple(up.shape)} x {tuple(down.shape)}"
            raise self.error(f"holds matrices of {name} that do not fit each other: {shapes}", "use another copy")
        return Pair(down, up * (self.alpha(name) / down.shape[0]))

    def header_value(self, key: str, default: str, kind: type) -> Any:
        """A value of the header that is written as JSON. Raises SpinliteError if it is not JSON of this type."""
        try:
            value = json.loads(self.metadata.get(key, default))
        except ValueError:
            value = None
        if not isinstance(value, kind):
            raise self.error(f"has an unreadable value of {key!r} in its header", "use another copy")
        return value

    def error(self, what: str, fix: str) -> SpinliteError:
        return SpinliteError(f"{self.path.name} {what}", fix=fix)

    def alpha(self, name: str) -> float:
        """A module's alpha: its own tensor, or else the header that diffusers and peft write, or else the rank."""
        rank = self.parts[name]["down"].shape[0]
        if "alpha" in self.parts[name]:
            return self.parts[name]["alpha"].item() or rank  # kohya reads alpha 0 as the rank
        header = self.header_value("lora_adapter_metadata", "{}", dict)
        part, _, module = name.partition(".")
        config = {key.removeprefix(f"{part}."): value for key, value in header.items() if key.startswith(f"{part}.")}
        patterns = config.get("alpha_pattern")
        exceptions = patterns.items() if isinstance(patterns, dict) else ()
        alpha = next((v for pattern, v in exceptions if module.endswith(pattern.lstrip("^"))), config.get("lora_alpha"))
        if alpha is None:
            return rank
        if not isinstance(alpha, int | float):
            raise self.error(f"has alpha {alpha!r} in its header, which is not a number", "use another copy")
        return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def open_lora(path: Path) -> LoraFile:
    """Read a LoRA file. Raises SpinliteError, with the file's name, if it is not a LoRA of up and down matrices."""
    file = read_tensors_of(path)
    if kind := name_algorithm(file):
        raise file.error(f"is {'an' if kind[0] in 'OI' else 'a'} {kind}, not a plain LoRA", "use a plain LoRA")
    if not file.parts:
        model = any(key.startswith(("model.diffusion_model.", "down_blocks.")) for key in file.foreign)
        what = "a whole model" if model else "not a LoRA"
        raise file.error(f"is {what}: none of its {len(file.foreign)} tensors belongs to a LoRA", "give a LoRA file")
    return file


def read_tensors_of(path: Path) -> LoraFile:
    """Read a safetensors file, LoRA or not. Raises SpinliteError, with the file's name, if it is not one or is damaged."""
    if path.suffix.lower() != ".safetensors":
        raise SpinliteError(
            f"{path.name} is not a .safetensors file; other formats (pickle) can run programs hidden in them",
            fix="use a .safetensors version of the LoRA",
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        problem = f"{path.name} is not a whole safetensors file: {why}"
        raise SpinliteError(problem, fix="check the path, or download it again") from None
    parts: dict[str, dict[str, Tensor]] = {}
    written: dict[str, str] = {}
    keys: dict[tuple[str, str], str] = {}
    foreign: list[str] = []
    for key, tensor in tensors.items():
        if names := split_key(key):
            name, kind, in_file = names
            parts.setdefault(name, {})[kind] = tensor
            written.setdefault(name, in_file)
            keys[name, kind] = key
        else:
            foreign.append(key)
    numbered = any(NUMBERED.fullmatch(key) for key in tensors)
    layout = "cloneofsimo" if numbered else "kohya" if any(name.startswith("lora_") for name in parts) else "diffusers"
    return LoraFile(path, layout, parts, written, keys, metadata, sorted(foreign))


def name_algorithm(file: LoraFile) -> str:
    """The name of the algorithm if it is not a LoRA of two matrices: "LoHa", "LoKr", …; "" for a LoRA."""
    return next((kind for parts in file.parts.values() for kind in parts if kind in OTHERS.values()), "")


def holds_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LoRA or something like it (LoHa, LoKr, …)."""
    return any(split_key(key) for key in keys)


def match_modules(file: LoraFile, names: Mapping[str, str], shapes: Shapes) -> tuple[dict[str, str], list[str]]:
    """({module: full name} for the modules that the base has, the other modules).

    `names`: kohya's keys for the base -> full names. `shapes`: those of its UNet's weights.
    """
    if file.layout == "cloneofsimo":
        return _numbered(file, list(shapes))
    known: dict[str, str] = {}
    for name in file.parts:
        full = names.get(name) or text_encoder_module(name) or (name if name.removeprefix("unet.") in shapes else None)
        if full or name.startswith("text_encoder"):
            known[name] = full or name
    return known, [name for name in file.parts if name not in known]


def read_lora_for(path: Path, names: Mapping[str, str], shapes: Shapes, base: str, text_alone: bool = False) -> dict[str, Pair]:
    """Read a LoRA file for a base model: full name -> change. `base` is the base's kind in words.

    Raises SpinliteError if the file was made for another kind of base, is incomplete or holds something that would be lost;
    and if it changes text encoders only, unless `text_alone`.
    """
    file = open_lora(path)
    known, unknown = match_modules(file, names, shapes)
    if any("magnitude" in parts for parts in file.parts.values()):
        raise file.error("is a DoRA: programs disagree about what its magnitudes mean", "use a plain LoRA")
    lora = {full: _shaped(file.pair(name), shapes.get(full.removeprefix("unet."))) for name, full in known.items()}
    wrong = [name for name, pair in lora.items() if not _fits(pair, shapes.get(name.removeprefix("unet.")), name)]
    if wrong or (unknown and not any(name.startswith("unet.") for name in lora)):
        example = wrong[0] if wrong else unknown[0]
        what = f"changes {lora[example].shape}, where the base has {shapes[example[5:]]}" if wrong else "is not in it"
        raise file.error(f"does not fit {base}: {example} {what}", "use a LoRA that was made for this kind of base model")
    if unknown or file.foreign:
        left = unknown + file.foreign
        raise file.error(f"holds {len(left)} keys that {base} has no place for, e.g. {left[0]}", "use another copy")
    if not text_alone and not any(name.startswith("unet.") for name in lora):
        raise file.error("changes only the text encoder, but spinlite trains the UNet", "use a LoRA with a UNet part")
    return lora


def text_encoder_part(lora: Lora) -> dict[str, Pair]:
    """The part of a LoRA that changes text encoders."""
    return {name: pair for name, pair in lora.items() if not name.startswith("unet.")}


def _shaped(pair: Pair, shape: tuple[int, ...] | None) -> Pair:
    """The pair in the base's shape: some files have a 1 x 1 convolution where the base has a linear layer, or vice versa."""
    if shape is None or pair.shape == shape or pair.shape[:2] != shape[:2] or math.prod(pair.shape) != math.prod(shape):
        return pair
    return Pair(pair.down.view(-1, *shape[1:]), pair.up.view(-1, pair.rank, *[1] * (len(shape) - 2)))


def _fits(pair: Pair, shape: tuple[int, ...] | None, name: str) -> bool:
    if shape is None:
        return not name.startswith("unet.")
    return pair.shape == shape


def _numbered(file: LoraFile, modules: list[str]) -> tuple[dict[str, str], list[str]]:
    """Modules by number. In each block cloneofsimo counts self-attention, then GEGLU, then cross-attention."""
    targets = {str(target) for target in file.header_value("unet", '["CrossAttention", "Attention", "GEGLU"]', list)}
    if targets - {"CrossAttention", "Attention", "GEGLU"}:
        what = f"numbers modules of {', '.join(sorted(targets))}, in an order that is not known"
        raise file.error(what, "use a version in kohya's layout")
    leaves = [f"attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    leaves += ["ff.net.0.proj"] * ("GEGLU" in targets) + [f"attn2.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    inner = [m.removesuffix("attn1.to_q") for m in modules if m.endswith("attn1.to_q")]
    first = [block for side in BLOCKS for block in inner if block.startswith(side)]
    orders = {
        "unet": [f"unet.{block}{leaf}" for block in first for leaf in leaves],
        "text_encoder": [
            f"text_encoder.text_model.encoder.layers.{i}.self_attn.{leaf}_proj"
            for i in range(48)
            for leaf in ("k", "v", "q", "out")
        ],
    }
    known: dict[str, str] = {}
    for name in file.parts:
        part, _, number = name.partition(":")
        if int(number) < len(orders[part]):
            known[name] = orders[part][int(number)]
    return known, [name for name in file.parts if name not in known]
