"""A base model with a LoRA in its weights, as one file in the original layout: written tensor by tensor, then compared."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.export.export import choose_round, read_plain_snapshot, read_snapshot
from spinlite.families.checkpoint import KINDS, Kind
from spinlite.families.load import load_family
from spinlite.families.names import kohya_keys, published_shapes
from spinlite.families.open import open_checkpoint
from spinlite.families.original import Place, find_places, single_file_tensors
from spinlite.families.single_file import SingleFile, read_header
from spinlite.lora.read import read_lora_for
from spinlite.lora.tensors import Lora, Pair, norm
from spinlite.memory import device
from spinlite.runs.run import Run

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
HASH = "modelspec.hash_sha256"
STALE = ("modelspec.thumbnail", "sshs_model_hash", "sshs_legacy_hash")  # of the base alone
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Merged:
    """What was read back: modules of the LoRA, tensors of the file; and what rounding to the file's precision adds to the
    weights, relative to the LoRA's changes (Frobenius norms)."""

    modules: int
    tensors: int
    rounding: float
    size: int  # bytes


class Base:
    """The tensors of a base model under the names of the original layout, read when asked for; a folder's are made at once."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        """Of a single file, or of a diffusers folder or hub id, whose weights are read in `dtype`."""
        checkpoint = open_checkpoint(name)
        self.name = checkpoint.name
        self.kind: Kind = checkpoint.kind
        self.metadata: dict[str, str] = {}
        self._made: Mapping[str, Tensor] = {}
        if isinstance(checkpoint, SingleFile):
            path = Path(name).expanduser()
            self._file: Any = safe_open(path, "pt")
            self.shapes, self.metadata = read_header(path)
        else:
            self._made = single_file_tensors(checkpoint, dtype)
            self.shapes = {key: tuple(value.shape) for key, value in self._made.items()}

    def get(self, key: str) -> Tensor:
        return self._made[key] if self._made else self._file.get_tensor(key)

    def modules(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the UNet's modules that a LoRA may change, by diffusers' names."""
        found = {module: find_places(f"unet.{module}", self.kind, self.shapes) for module in published_shapes(self.kind)}
        return {module: self.shapes[at[0].key] for module, at in found.items() if at}


def lora_of_run(folder: Path, word: str) -> tuple[Lora, dict[str, Any]]:
    """(the LoRA of a run's round, what is to be said of it). The run's base is loaded only where the LoRA needs it."""
    run = Run.open_existing(folder)
    k, model = choose_round(run, word), run.settings.model
    needs = model.dora or model.init_lora
    lora = (
        read_snapshot(run, load_family(model, device.choose_device(run.memory)), k)[0] if needs else read_plain_snapshot(run, k)
    )
    return lora, {"lora": run.name, "round": k, "method": run.settings.method["name"]}


def lora_of_file(path: Path, base: Base) -> tuple[Lora, dict[str, Any]]:
    """(what a LoRA file changes in the base, what is to be said of it)."""
    known = base.modules()
    return read_lora_for(path, kohya_keys(known, base.kind), known, base.name, text_alone=True), {"lora": path.stem}


def merge(lora: Lora, base: Base, to: Path, dtype: torch.dtype | None, said: Mapping[str, Any], progress: Progress) -> Merged:
    """Write the base's tensors, changed by the LoRA, in their own precision or `dtype`; memory is one tensor's at a time.

    Averages (EMA) are changed alike. Raises SpinliteError where the base lacks a module, or the file is not what it should be.
    """
    spots = _changes_by_key(lora, base)
    keys = sorted(base.shapes, key=lambda key: -_target(base.get(key), dtype).itemsize)  # so that all are aligned
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f"{to.name}.{os.getpid()}.part")
    error = 0.0
    try:
        with draft.open("w+b") as file:
            header = _header(base, keys, dtype, {**said, "base": Path(base.name).stem})
            file.write(header)
            digest = hashlib.sha256()
            for done, key in enumerate(keys):
                exact = _changed_tensor(base.get(key), spots.get(key, []))
                stored = exact.to(_target(base.get(key), dtype))
                if key in spots:
                    error += (stored.double() - exact.double()).square().sum().item()
                content = _bytes(stored)
                digest.update(content)
                file.write(content)
                progress(done + 1, 2 * len(keys))
            file.seek(0)
            file.write(header.replace(b"0x" + b"0" * 64, f"0x{digest.hexdigest()}".encode()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, to)
    finally:
        draft.unlink(missing_ok=True)
    _compare(to, base, keys, spots, dtype, lambda done: progress(len(keys) + done, 2 * len(keys)))
    whole = sum(norm(pair) ** 2 for at in spots.values() for _, pair in at)
    return Merged(len(lora), len(keys), math.sqrt(error / whole) if whole else 0.0, to.stat().st_size)


def _changes_by_key(lora: Lora, base: Base) -> dict[str, list[tuple[Place, Pair]]]:
    """What is added where, by the file's keys."""
    found: dict[str, list[tuple[Place, Pair]]] = {}
    for name, pair in lora.items():
        at = find_places(name, base.kind, base.shapes)
        for place in at:
            shape = base.shapes[place.key]
            rows = shape[0] // (1 if place.third is None else 3)
            if (rows, *shape[1:2]) != pair.shape[:2] or math.prod((rows, *shape[1:])) != math.prod(pair.shape):
                what = f"{name} changes {pair.shape}, where {base.name} has {(rows, *shape[1:])}"
                raise SpinliteError(what, fix=f"merge it into a model of its own kind; this is {KINDS[base.kind]}")
            found.setdefault(place.key, []).append((place, pair))
        if not at:
            what = f"{base.name} has no {name}, which the LoRA changes"
            raise SpinliteError(what, fix=f"merge it into a model of its own kind; this is {KINDS[base.kind]}")
    return found


def _changed_tensor(weight: Tensor, spots: list[tuple[Place, Pair]]) -> Tensor:
    """A tensor with its changes, in fp32; without any, as it is."""
    if not spots:
        return weight
    weight = weight.to(torch.float32, copy=True)
    for place, pair in spots:
        rows = place.rows_of(weight)
        rows += pair.change.view(rows.shape)
    return weight


def _target(weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and weight.is_floating_point() else weight.dtype


def _header(base: Base, keys: list[str], dtype: torch.dtype | None, said: Mapping[str, Any]) -> bytes:
    """The first bytes of a safetensors file, with zeros where the hash of what follows will be."""
    metadata = {key: value for key, value in base.metadata.items() if key not in STALE}
    metadata |= {"format": "pt", "spinlite.merged": json.dumps(said, ensure_ascii=False), HASH: "0x" + "0" * 64}
    tree: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for key in keys:
        kind = _target(base.get(key), dtype)
        size = math.prod(base.shapes[key]) * kind.itemsize
        tree[key] = {"dtype": CODES[kind], "shape": base.shapes[key], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _compare(
    to: Path, base: Base, keys: list[str], spots: Mapping[str, Any], dtype: torch.dtype | None, progress: Callable[[int], None]
) -> None:
    kind = open_checkpoint(str(to)).kind
    with safe_open(to, "pt") as file:
        whole = kind == base.kind and set(file.keys()) == set(keys)
        for done, key in enumerate(keys):
            wanted = _changed_tensor(base.get(key), spots.get(key, [])).to(_target(base.get(key), dtype))
            whole = whole and (_bytes(file.get_tensor(key)) == _bytes(wanted)).all()
            progress(done + 1)
    if not whole:
        raise SpinliteError(f"{to} does not hold what was merged", fix="check the disk, and report this as a bug if it is well")
