"""A LoRA file of anyone's -> what it changes: kohya's, diffusers' (peft and older) and cloneofsimo's layouts.

Only safetensors are opened. Modules are known by full names; kohya's keys are resolved by a table of the base's modules.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.lora.tensors import Lora, Pair

ENDS = {  # how keys end -> what they hold; the first that fits counts
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".dora_scale": "magnitude", ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
OTHER = re.compile(r"(.+)\.(?:(hada|lokr|oft)_[\w.]+|(diff|on_input))")  # ends of keys of what is no product of two matrices
OTHERS = {"hada": "LoHa", "lokr": "LoKr", "oft": "OFT", "diff": "full difference", "on_input": "IA3"}
LAYER = re.compile(r"lora_(te|te1|te2)_(?:text_model_)?encoder_layers_(\d+)_(self_attn|mlp)_(\w+)")
ENCODERS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
BLOCKS = ("down_blocks.", "up_blocks.", "mid_block.")  # cloneofsimo's order: that of the network's own list of modules
Shapes = Mapping[str, tuple[int, ...]]  # of the weights of a UNet's modules, by diffusers' names
NUMBERED = re.compile(r"(unet|text_encoder):(\d+):(up|down)")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file as it was written: tensors by the module's name there and what they are ("down", "up", "alpha", …)."""

    path: Path
    layout: str  # "kohya", "diffusers" or "cloneofsimo"
    parts: Mapping[str, Mapping[str, Tensor]]
    written: Mapping[str, str]  # the modules' names -> what the file calls them
    keys: Mapping[tuple[str, str], str]  # (module, which tensor) -> the tensor's key
    metadata: Mapping[str, str]
    foreign: list[str]  # keys of something else

    def pair(self, name: str) -> Pair:
        """What a module's tensors say together. Raises SpinliteError where one is missing or they don't fit."""
        found = {part: tensor.float() for part, tensor in self.parts[name].items()}
        if "down" not in found or "up" not in found:
            raise self.error(f"holds half of the module {name}", "download it again")
        down, up = found["down"], found["up"]
        if "mid" in found:  # LyCORIS' Tucker form of a convolution
            down = torch.einsum("rskl,si->rikl", found["mid"], down.flatten(1))
        if up.ndim not in (2, 4) or down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
            raise self.error(f"holds {name} as {tuple(up.shape)} x {tuple(down.shape)}, which do not fit", "use another copy")
        return Pair(down, up * (self.alpha(name) / down.shape[0]))

    def header_value(self, key: str, default: str, kind: type) -> Any:
        """JSON of the header. Raises SpinliteError where it is none, or of another kind."""
        try:
            found = json.loads(self.metadata.get(key, default))
        except ValueError:
            found = None
        if not isinstance(found, kind):
            raise self.error(f"has a header whose {key!r} can't be read", "use another copy")
        return found

    def error(self, what: str, fix: str) -> SpinliteError:
        return SpinliteError(f"{self.path.name} {what}", fix=fix)

    def alpha(self, name: str) -> float:
        """A module's tensor, or what the header says that diffusers and peft write; without either, and for 0, the rank."""
        rank = self.parts[name]["down"].shape[0]
        if "alpha" in self.parts[name]:
            return self.parts[name]["alpha"].item() or rank  # kohya: alpha 0 is the rank
        said = self.header_value("lora_adapter_metadata", "{}", dict)
        part, _, module = name.partition(".")
        said = {key.removeprefix(f"{part}."): value for key, value in said.items() if key.startswith(f"{part}.")}
        patterns = said.get("alpha_pattern")
        matched = patterns.items() if isinstance(patterns, dict) else ()
        alpha = next((v for pattern, v in matched if module.endswith(pattern.lstrip("^"))), said.get("lora_alpha"))
        if alpha is None:
            return rank
        if not isinstance(alpha, int | float):
            raise self.error(f"has a header whose alpha is {alpha!r}", "use another copy")
        return alpha * math.sqrt(rank) if said.get("use_rslora") else alpha


def open_lora(path: Path) -> LoraFile:
    """Read a file. Raises SpinliteError, with the file's name, for what is no LoRA of up and down matrices."""
    file = read_tensors_of(path)
    if kind := name_algorithm(file):
        raise file.error(f"is {'an' if kind[0] in 'OI' else 'a'} {kind}, not a plain LoRA", "use a plain LoRA")
    if not file.parts:
        model = any(key.startswith(("model.diffusion_model.", "down_blocks.")) for key in file.foreign)
        what = "a whole model" if model else "no LoRA"
        raise file.error(f"is {what}: none of its {len(file.foreign)} tensors is a LoRA's", "name a LoRA file")
    return file


def read_tensors_of(path: Path) -> LoraFile:
    """Read whatever a file holds. Raises SpinliteError, with the file's name, for what is no whole safetensors file."""
    if path.suffix.lower() != ".safetensors":
        raise SpinliteError(
            f"{path.name} is not a .safetensors file; a pickle can run any program that is hidden in it",
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
        if found := _split(key):
            name, part, own = found
            parts.setdefault(name, {})[part] = tensor
            written.setdefault(name, own)
            keys[name, part] = key
        else:
            foreign.append(key)
    numbered = any(NUMBERED.fullmatch(key) for key in tensors)
    layout = "cloneofsimo" if numbered else "kohya" if any(name.startswith("lora_") for name in parts) else "diffusers"
    return LoraFile(path, layout, parts, written, keys, metadata, sorted(foreign))


def name_algorithm(file: LoraFile) -> str:
    """What a file is whose changes are no products of two matrices: "LoHa", "LoKr", …; "" for a LoRA."""
    return next((part for parts in file.parts.values() for part in parts if part in OTHERS.values()), "")


def holds_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LoRA or a relative of one."""
    return any(_split(key) for key in keys)


def match_modules(file: LoraFile, names: Mapping[str, str], shapes: Shapes) -> tuple[dict[str, str], list[str]]:
    """(full name of each module that is known, the others). `names`: kohya's keys of the base; `shapes`: its UNet's."""
    if file.layout == "cloneofsimo":
        return _numbered(file, list(shapes))
    found: dict[str, str] = {}
    for name in file.parts:
        full = names.get(name) or _text(name) or (name if name.removeprefix("unet.") in shapes else None)
        if full or name.startswith("text_encoder"):
            found[name] = full or name
    return found, [name for name in file.parts if name not in found]


def read_lora_for(
    path: Path, names: Mapping[str, str], shapes: Shapes, base: str, text_alone: bool = False
) -> dict[str, Pair]:
    """What a LoRA file changes in a base model, by full names; text encoders alone only where that is meant.

    Raises SpinliteError where it was made for another kind of base, is not whole, or holds what would be lost.
    """
    file = open_lora(path)
    found, unknown = match_modules(file, names, shapes)
    if any("magnitude" in parts for parts in file.parts.values()):
        raise file.error("is a DoRA: programs read its magnitudes in ways that differ", "use a plain LoRA")
    lora = {full: _shaped(file.pair(name), shapes.get(full.removeprefix("unet."))) for name, full in found.items()}
    wrong = [name for name, pair in lora.items() if not _fits(pair, shapes.get(name.removeprefix("unet.")), name)]
    if wrong or (unknown and not any(name.startswith("unet.") for name in lora)):
        example = wrong[0] if wrong else unknown[0]
        what = f"changes {lora[example].shape}, where the base has {shapes[example[5:]]}" if wrong else "is not in it"
        raise file.error(f"does not fit {base}: {example} {what}", "use a LoRA that was made for this kind of base model")
    if unknown or file.foreign:
        strange = unknown + file.foreign
        raise file.error(f"holds {len(strange)} keys that {base} has no place for, e.g. {strange[0]}", "use another copy")
    if not text_alone and not any(name.startswith("unet.") for name in lora):
        raise file.error("changes the text encoder alone, and what is trained here is the UNet", "use a LoRA with a UNet part")
    return lora


def text_encoder_part(lora: Lora) -> dict[str, Pair]:
    """The modules of text encoders."""
    return {name: pair for name, pair in lora.items() if not name.startswith("unet.")}


def _shaped(pair: Pair, shape: tuple[int, ...] | None) -> Pair:
    """A pair for a linear layer that was a 1 x 1 convolution, or the other way round, in the shape that the base has."""
    if shape is None or pair.shape == shape or pair.shape[:2] != shape[:2] or math.prod(pair.shape) != math.prod(shape):
        return pair
    return Pair(pair.down.view(-1, *shape[1:]), pair.up.view(-1, pair.rank, *[1] * (len(shape) - 2)))


def _fits(pair: Pair, shape: tuple[int, ...] | None, name: str) -> bool:
    if shape is None:
        return not name.startswith("unet.")
    return pair.shape == shape


def _split(key: str) -> tuple[str, str, str] | None:
    """(the module's name, which of its tensors, what the file calls the module); dotted names as diffusers' full ones."""
    if place := NUMBERED.fullmatch(key):
        name = f"{place[1]}:{place[2]}"
        return name, place[3], name
    for end, part in ENDS.items():
        if key.endswith(end):
            own = key.removesuffix(end)
            return _canonical(own), part, own
    if other := OTHER.fullmatch(key):
        return _canonical(other[1]), OTHERS[other[2] or other[3]], other[1]
    return None


def _canonical(name: str) -> str:
    if name.startswith("lora_"):
        return name
    name = name.replace("base_model.model.", "").replace(".processor.", ".")
    if name.startswith(BLOCKS):
        name = f"unet.{name}"
    if name.endswith(".to_out"):
        name += ".0"
    return re.sub(r"^(text_encoder(?:_2)?)\.encoder\.", r"\1.text_model.encoder.", name)


def _text(key: str) -> str | None:
    """The full name of a text encoder's module in kohya's layout."""
    if not (found := LAYER.fullmatch(key)):
        return None
    return f"{ENCODERS[found[1]]}.text_model.encoder.layers.{found[2]}.{found[3]}.{found[4]}"


def _numbered(file: LoraFile, modules: list[str]) -> tuple[dict[str, str], list[str]]:
    """cloneofsimo's files number the modules in the order that its diffusers had: attention to itself, GEGLU, to the text."""
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
            for i in range(48) for leaf in ("k", "v", "q", "out")
        ],
    }
    found: dict[str, str] = {}
    for name in file.parts:
        part, _, number = name.partition(":")
        if int(number) < len(orders[part]):
            found[name] = orders[part][int(number)]
    return found, [name for name in file.parts if name not in found]
