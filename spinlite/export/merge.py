"""Merges a LoRA into a base model: one file in the original layout, written tensor by tensor, then read back."""

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
from spinlite.families.flow_files import FlowFiles
from spinlite.families.keys import has_scales
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.load import layout_of, load_family
from spinlite.families.motion_kinds import is_motion
from spinlite.families.open import open_checkpoint
from spinlite.families.record import Place
from spinlite.families.single_file import SingleFile, read_header
from spinlite.lora.read import read_lora_for
from spinlite.lora.tensors import NOTHING, Lora, Pair, changes_nothing, norm
from spinlite.memory import device
from spinlite.runs.run import Run

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
HASH = "modelspec.hash_sha256"
STALE = ("modelspec.thumbnail", "sshs_model_hash", "sshs_legacy_hash")  # true of the base only, not of the merged model
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Merged:
    """The merged file: modules of the LoRA in it, all its tensors, its size.

    `rounding` is the error of the file's precision, relative to the LoRA's changes (Frobenius norms).
    """

    modules: int
    tensors: int
    rounding: float
    size: int  # bytes


class Base:
    """Tensors of a base model under the names of the original layout. A single file's are read one by one."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        """`name` is a single file, a diffusers folder or a hub id. Weights of the latter two are loaded in `dtype`."""
        checkpoint = open_checkpoint(name)
        self.name = checkpoint.name
        self.kind: Kind = checkpoint.kind
        self.metadata: dict[str, str] = {}
        self._tensors: Mapping[str, Tensor] = {}
        if isinstance(checkpoint, SingleFile | FlowFiles):
            path = Path(name).expanduser()
            self._file: Any = safe_open(path, "pt")
            self.shapes, self.metadata = read_header(path)
            if has_scales(self.shapes):
                fix = "merge into a version in fp16 or bf16, or keep the LoRA as a file of its own"
                raise SpinliteError(f"{name} holds weights in 8 bits, with scales beside them", fix=fix)
        else:
            self._tensors = layout_of(self.kind).single_file_tensors(checkpoint, dtype)
            self.shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}

    def get(self, key: str) -> Tensor:
        return self._tensors[key] if self._tensors else self._file.get_tensor(key)

    def modules(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the UNet weights that a LoRA may change, by diffusers' module names."""
        places = {module: self.places(f"unet.{module}") for module in KINDS[self.kind].lora.shapes()}
        return {module: self.rows(at[0]) for module, at in places.items() if at}

    def places(self, name: str) -> list[Place]:
        """Where a module, by its full name, is in the file."""
        return layout_of(self.kind).find_places(name, self.kind, self.shapes)

    def rows(self, place: Place) -> tuple[int, ...]:
        """The shape of a module's own rows of a tensor."""
        shape = self.shapes[place.key]
        return (shape[0] // (1 if place.third is None else 3), *shape[1:])


def lora_of_run(folder: Path, word: str) -> tuple[Lora, dict[str, Any]]:
    """(the LoRA of a round, facts about it for the file's header). The run's base is loaded only if the LoRA needs it."""
    run = Run.open_existing(folder)
    k, model = choose_round(run, word), run.settings.model
    if model.dora or model.init_lora:
        lora = read_snapshot(run, load_family(model, device.choose_device(run.memory)), k)[0]
    else:
        lora = read_plain_snapshot(run, k)
    return lora, {"lora": run.name, "round": k, "method": run.settings.method["name"]}


def lora_of_file(path: Path, base: Base) -> tuple[Lora, dict[str, Any]]:
    """(the LoRA of a file, facts about it for the merged file's header)."""
    known = base.modules()
    return read_lora_for(path, KINDS[base.kind].lora.keys(known), known, base.name, text_alone=True), {"lora": path.stem}


def merge(lora: Lora, base: Base, to: Path, dtype: torch.dtype | None, about: Mapping[str, Any], progress: Progress) -> Merged:
    """Write the base's tensors with the LoRA's changes, in their own precision or `dtype`. One tensor at a time is in memory.

    EMA weights get the same changes. `about` goes into the header. Raises SpinliteError if the LoRA changes nothing, if the
    base lacks a module of it, if NaN or infinite numbers would be written, or if the file read back is not what was written.
    """
    if changes_nothing(lora):
        raise SpinliteError(NOTHING, fix="give another round (--round) or another file, or a --strength that is not 0")
    changes = _changes_by_key(lora, base)
    # the largest types first, so that all tensors are aligned
    keys = sorted(base.shapes, key=lambda key: -_target_dtype(base.get(key), dtype).itemsize)
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f"{to.name}.{os.getpid()}.part")
    error = 0.0
    try:
        with draft.open("w+b") as file:
            header = _header(base, keys, dtype, {**about, "base": Path(base.name).stem})
            file.write(header)
            digest = hashlib.sha256()
            for done, key in enumerate(keys):
                exact = _changed_tensor(base.get(key), changes.get(key, []))
                stored = exact.to(_target_dtype(base.get(key), dtype))
                _refuse_broken(key, base, stored)
                if key in changes:
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
    _compare(to, base, keys, changes, dtype, lambda done: progress(len(keys) + done, 2 * len(keys)))
    whole = sum(norm(pair) ** 2 for at in changes.values() for _, pair in at)
    return Merged(len(lora), len(keys), math.sqrt(error / whole) if whole else 0.0, to.stat().st_size)


def _changes_by_key(lora: Lora, base: Base) -> dict[str, list[tuple[Place, Pair]]]:
    """A tensor's key -> the rows that change, and the changes."""
    changes: dict[str, list[tuple[Place, Pair]]] = {}
    for name, pair in lora.items():
        at = base.places(name)
        for place in at:
            shape = base.rows(place)
            if shape[:2] != pair.shape[:2] or math.prod(shape) != math.prod(pair.shape):
                what = f"{name} has the shape {pair.shape} in the LoRA, but {shape} in {base.name}"
                raise SpinliteError(what, fix=_fix_kind(base))
            changes.setdefault(place.key, []).append((place, pair))
        if not at:
            what = f"{base.name} has no {name}, which the LoRA changes"
            moves = is_motion(name.removeprefix("unet."))
            raise SpinliteError(what, fix="keep it as a file: it is a motion LoRA" if moves else _fix_kind(base))
    return changes


def _fix_kind(base: Base) -> str:
    return f"merge it into the kind of model that it was made for; this one is {KINDS[base.kind].title}"


def _changed_tensor(weight: Tensor, changes: list[tuple[Place, Pair]]) -> Tensor:
    """A tensor with its changes, in fp32; the tensor itself if there are none."""
    if not changes:
        return weight
    weight = weight.to(torch.float32, copy=True)
    for place, pair in changes:
        rows = weight if place.third is None else weight.chunk(3)[place.third]
        rows += pair.change.view(rows.shape)
    return weight


def _refuse_broken(key: str, base: Base, stored: Tensor) -> None:
    """Raises SpinliteError if a tensor to be written holds NaN or infinite numbers: the base's own, or too large ones."""
    if not stored.is_floating_point() or stored.float().isfinite().all():
        return
    if not base.get(key).float().isfinite().all():
        raise SpinliteError(
            f"{base.name} is broken: {key} holds NaN or infinite numbers", fix="use another copy of the base model"
        )
    problem = f"{key} with the LoRA in it holds numbers too large for {str(stored.dtype).removeprefix('torch.')}"
    raise SpinliteError(problem, fix="add --dtype fp32, or give a smaller --strength")


def _target_dtype(weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and weight.is_floating_point() else weight.dtype


def _header(base: Base, keys: list[str], dtype: torch.dtype | None, about: Mapping[str, Any]) -> bytes:
    """The header of a safetensors file, with zeros in place of the data's hash, which is not known yet."""
    metadata = {key: value for key, value in base.metadata.items() if key not in STALE}
    metadata |= {"format": "pt", "spinlite.merged": json.dumps(about, ensure_ascii=False), HASH: "0x" + "0" * 64}
    tree: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for key in keys:
        kind = _target_dtype(base.get(key), dtype)
        size = math.prod(base.shapes[key]) * kind.itemsize
        tree[key] = {"dtype": CODES[kind], "shape": base.shapes[key], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _compare(
    to: Path,
    base: Base,
    keys: list[str],
    changes: Mapping[str, Any],
    dtype: torch.dtype | None,
    progress: Callable[[int], None],
) -> None:
    kind = open_checkpoint(str(to)).kind
    with safe_open(to, "pt") as file:
        whole = kind == base.kind and set(file.keys()) == set(keys)
        for done, key in enumerate(keys):
            weight = base.get(key)
            expected = _changed_tensor(weight, changes.get(key, [])).to(_target_dtype(weight, dtype))
            whole = whole and (_bytes(file.get_tensor(key)) == _bytes(expected)).all()
            progress(done + 1)
    if not whole:
        raise SpinliteError(f"{to} does not hold what was merged", fix="check the disk; if it is fine, report this as a bug")
