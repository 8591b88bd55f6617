"""Append-only shards of tensors in a folder named by the hash of what made them.

A shard is written whole or not at all, and is never changed; what a folder holds is what its shards hold.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spinlite.errors import SpinliteError


def fingerprint(*parts: Any) -> str:
    """16 hex digits that name what something was made of. Parts are anything JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits of the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_bytes(content: bytes) -> str:
    """16 hex digits of a content: those that `fingerprint_files` gives to the one file that holds it."""
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()[:16]


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all, also where the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    replace(path, save(plain, dict(metadata) if metadata else None))


def replace(path: Path, content: bytes) -> None:
    """Write a file by way of a neighbour, so that a reader sees the old or the new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. The tensors are copies: a file that is mapped can't be replaced on Windows."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise SpinliteError(f"{path} is damaged: {error}", fix="delete that file and run the same command") from None


class Store:
    """Items by key, each a few named tensors; `get` stacks the items it is asked for.

    Items lie on disk and are read when asked for: memory is flat in their number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, list[str]]] = {}
        self._open: dict[Path, Any] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._index(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """One shard: tensors are (B, ...), one row a key. Keys are without '/'; those that are there stay as they are."""
        new = [(i, key) for i, key in enumerate(keys) if key not in self]
        rows = {f"{key}/{name}": value[i] for i, key in new for name, value in tensors.items()}
        shard = self.folder / f"{fingerprint([key for _, key in new])}.safetensors"
        write(shard, rows)
        self._index(shard)

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors (B, ...), one row a key, on the CPU."""
        names = self._places[keys[0]][1]
        return {name: torch.stack([self._tensor(key, name) for key in keys]) for name in names}

    def _tensor(self, key: str, name: str) -> Tensor:
        shard, _ = self._places[key]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, "pt")
        return self._open[shard].get_tensor(f"{key}/{name}")

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                names = list(file.keys())
        except SafetensorError:
            shard.unlink()  # not one of ours, or cut short: its items are made again
            return
        for full in names:
            key, _, name = full.rpartition("/")
            self._places.setdefault(key, (shard, []))[1].append(name)
