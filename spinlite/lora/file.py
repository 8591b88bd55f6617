"""A LoRA file that any program wrote, in kohya's, diffusers' (peft and older), ComfyUI's or cloneofsimo's layout.

Only safetensors are opened, and torch is not needed. `match` finds the modules in a base, `read` makes torch tensors of them.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spinlite.errors import SpinliteError
from spinlite.lora.keys import NUMBERED, OTHERS, split_key
from spinlite.lora.numbers import Array, Matrices, Stored

COPY = "use another copy"


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a LoRA file, by module and kind ("down", "up", "alpha", …; see `keys`)."""

    path: Path
    layout: str  # "kohya", "diffusers" or "cloneofsimo"
    parts: Mapping[str, Mapping[str, Stored]]
    written: Mapping[str, str]  # module -> its name in the file
    keys: Mapping[tuple[str, str], str]  # (module, kind) -> the tensor's key in the file
    twice: list[str]  # keys that give a tensor of a module once more, under another name
    metadata: Mapping[str, str]
    foreign: list[str]  # keys that are not a LoRA's
    data: memoryview  # the file's bytes after its header; empty if it is not a LoRA

    def matrices(self, name: str) -> Matrices:
        """A module's change. Raises SpinliteError if tensors are missing, don't fit together, or hold no proper numbers."""
        down, up = (self._numbers(name, kind) for kind in ("down", "up"))
        with np.errstate(over="ignore", invalid="ignore"):
            if "mid" in self.parts[name]:  # LyCORIS' Tucker form of a convolution
                down = self._tucker(name, down)
            if not _fit(down, up):
                raise self.error(f"holds matrices of {name} that do not fit each other: {up.shape} x {down.shape}", COPY)
            up = up * (self.alpha(name) / len(down))
        if not (np.isfinite(up).all() and np.isfinite(down).all()):
            raise self.error(f"holds numbers of {name} that are too large", COPY)
        return Matrices(down, up)

    def header_value(self, key: str, default: str, kind: type) -> Any:
        """A value of the header that is written as JSON. Raises SpinliteError if it is not JSON of this type."""
        try:
            value = json.loads(self.metadata.get(key, default))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, kind):
            raise self.error(f"has an unreadable value of {key!r} in its header", COPY)
        return value

    def error(self, what: str, fix: str) -> SpinliteError:
        return SpinliteError(f"{self.path.name} {what}", fix=fix)

    def alpha(self, name: str) -> float:
        """A module's alpha: its own tensor, or else the header that diffusers and peft write, or else the rank.

        Raises SpinliteError if it is not one number, or 0: then sd-scripts takes the rank, and others apply nothing.
        """
        if "alpha" in self.parts[name]:
            numbers = self._numbers(name, "alpha")
            if numbers.size != 1:
                raise self.error(f"has {numbers.size} numbers as alpha of {name}, where there should be one", COPY)
            alpha = numbers.item()
        else:
            alpha = self._alpha_in_header(name)
        if not alpha:
            raise self.error(f"has alpha 0 for {name}: most programs apply nothing of it", COPY)
        return alpha

    def _alpha_in_header(self, name: str) -> float:
        """The alpha of a module without a tensor for it."""
        shape = self.parts[name]["down"].shape if "down" in self.parts[name] else ()
        rank = shape[0] if shape else 1
        header = self.header_value("lora_adapter_metadata", "{}", dict)
        part, _, module = name.partition(".")
        config = {key.removeprefix(f"{part}."): value for key, value in header.items() if key.startswith(f"{part}.")}
        patterns = config.get("alpha_pattern")
        exceptions = patterns.items() if isinstance(patterns, dict) else ()
        alpha = next((v for pattern, v in exceptions if module.endswith(pattern.lstrip("^"))), config.get("lora_alpha"))
        if alpha is None:
            return rank
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise self.error(f"has alpha {alpha!r} in its header, which is not a number", COPY)
        return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha

    def _numbers(self, name: str, kind: str) -> Array:
        """The numbers of one of a module's tensors; raises as `matrices`."""
        stored = self.parts[name].get(kind)
        if stored is None:
            raise self.error(f"holds half of the module {name} (its {kind} matrix is missing)", "download it again")
        key = self.keys[name, kind]
        if 0 in stored.shape:
            raise self.error(f"holds {key} of size {stored.shape}, without any numbers", COPY)
        try:
            numbers = stored.numbers()
        except ValueError:
            raise self.error(f"holds {key} as {stored.dtype}, which spinlite can't read", "use a copy in fp16") from None
        if not np.isfinite(numbers).all():
            raise self.error(f"is broken: {key} holds NaN or infinite numbers", "use another copy, or an earlier epoch of it")
        return numbers

    def _tucker(self, name: str, down: Array) -> Array:
        mid = self._numbers(name, "mid")
        if mid.ndim != 4 or down.ndim not in (2, 4) or math.prod(down.shape[2:]) != 1 or mid.shape[1] != len(down):
            raise self.error(f"holds matrices of {name} that do not fit each other: {mid.shape} x {down.shape}", COPY)
        return np.einsum("rskl,si->rikl", mid, down.reshape(len(down), -1), optimize=True).astype(np.float32)


def read_lora_file(path: Path) -> LoraFile:
    """Read a safetensors file; the tensors only if it is a LoRA. Raises SpinliteError if it is not one or is damaged."""
    keys, metadata = read_keys(path)
    tensors, data = _tensors(path) if holds_lora(keys) else ({}, memoryview(b""))
    parts: dict[str, dict[str, Stored]] = {}
    written: dict[str, str] = {}
    places: dict[tuple[str, str], str] = {}
    foreign: list[str] = []
    twice: list[str] = []
    for key in keys:
        names = split_key(key)
        if names is None:
            foreign.append(key)
            continue
        name, kind, in_file = names
        if (name, kind) in places:
            twice.append(key)
            continue
        parts.setdefault(name, {})[kind] = tensors[key]
        written.setdefault(name, in_file)
        places[name, kind] = key
    numbered = any(NUMBERED.fullmatch(key) for key in keys)
    layout = "cloneofsimo" if numbered else "kohya" if any(name.startswith("lora_") for name in parts) else "diffusers"
    return LoraFile(path, layout, parts, written, places, twice, metadata, sorted(foreign), data)


def open_lora(path: Path) -> LoraFile:
    """Read a LoRA file. Raises SpinliteError, with the file's name, if it is not a LoRA of up and down matrices."""
    file = read_lora_file(path)
    if kind := name_algorithm(file):
        raise file.error(f"is {'an' if kind[0] in 'OI' else 'a'} {kind}, not a plain LoRA", "use a plain LoRA")
    if not file.parts:
        model = any(key.startswith(("model.diffusion_model.", "down_blocks.")) for key in file.foreign)
        what = "a whole model" if model else "not a LoRA"
        raise file.error(f"is {what}: none of its {len(file.foreign)} tensors belongs to a LoRA", "give a LoRA file")
    if file.twice:
        raise file.error(f"holds a module twice: {file.twice[0]} is there under another name too", COPY)
    return file


def read_keys(path: Path) -> tuple[list[str], dict[str, str]]:
    """(keys, metadata) of a safetensors file. Raises SpinliteError, with the file's name, if it is not one or is damaged."""
    if path.suffix.lower() != ".safetensors":
        raise SpinliteError(
            f"{path.name} is not a .safetensors file; other formats (pickle) can run programs hidden in them",
            fix="use a .safetensors version of the LoRA",
        )
    try:
        with safe_open(path, "np") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        problem = f"{path.name} is not a whole safetensors file: {why}"
        raise SpinliteError(problem, fix="check the path, or download it again") from None


def name_algorithm(file: LoraFile) -> str:
    """The name of the algorithm if it is not a LoRA of two matrices: "LoHa", "LoKr", …; "" for a LoRA."""
    return next((kind for parts in file.parts.values() for kind in parts if kind in OTHERS.values()), "")


def holds_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LoRA or something like it (LoHa, LoKr, …)."""
    return any(split_key(key) for key in keys)


def _tensors(path: Path) -> tuple[dict[str, Stored], memoryview]:
    """(tensors by key, the bytes after the header) of a file whose header safetensors has checked."""
    content = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    data = content[start:]
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[key] = Stored(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    return tensors, data


def _fit(down: Array, up: Array) -> bool:
    """Whether two matrices make a change of a linear layer or a convolution."""
    return up.ndim in (2, 4) and down.ndim in (2, 4) and math.prod(up.shape[1:]) == len(down)
