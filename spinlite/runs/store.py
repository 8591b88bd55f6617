"""Tensors on disk: a `Store` is a folder of append-only shards, named by the hash of what its items were made from.

A shard is one safetensors file. It is written whole or not at all, and never changed.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spinlite.errors import SpinliteError

SHARD = 2**27  # bytes; a shard is written when so much has gathered
SAVE_SECONDS = 10.0  # a run that is killed loses at most the items of so much time
Place = tuple[int, int, int]  # (shard, group, row)


def fingerprint(*parts: Any) -> str:
    """16 hex digits: the hash of `parts`, which may be anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits: the hash of the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_bytes(content: bytes) -> str:
    """16 hex digits: the hash that `fingerprint_files` gives for one file with this content."""
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()[:16]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, even if the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, dict(metadata) if metadata else None))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it: a reader sees the old file or the new one, never half of one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises SpinliteError if it is damaged.

    The tensors are copies, because Windows can't replace a file that is mapped into memory.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise SpinliteError(f"{path} is damaged: {error}", fix="delete that file and run the same command") from None


class Store:
    """Items by key. An item is a few named tensors; `get` stacks several items.

    Items stay on disk until `get` reads them; only the index is in memory, some 200 bytes an item. Without a block each `add`
    writes a shard. Within `with store:` items are gathered into larger shards, and all are written when the block ends, also
    by an error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, Place] = {}
        self._shards: list[tuple[Path, list[list[str]]]] = []  # (path, tensor names of each group)
        self._open: dict[int, Any] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._gathering, self._bytes, self._since = False, 0, 0.0
        for shard in sorted(folder.glob("*.safetensors")):
            self._index(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._waiting

    def __len__(self) -> int:
        return len(self._places) + len(self._waiting)

    def __enter__(self) -> "Store":
        self._gathering = True
        return self

    def __exit__(self, *_: object) -> None:
        self._gathering = False
        self._write()

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Add one item for each key; tensors are (B, ...), a row for each. Items that are there already stay as they are."""
        if not self._waiting:
            self._since = time.monotonic()
        for i, key in enumerate(keys):
            if key not in self:
                self._waiting[key] = {name: value[i].detach().cpu() for name, value in tensors.items()}
                self._bytes += sum(value.nbytes for value in self._waiting[key].values())
        if not self._gathering or self._bytes >= SHARD or time.monotonic() - self._since >= SAVE_SECONDS:
            self._write()

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors (B, ...) on the CPU, one row for each key. The items must have one shape."""
        self._write()
        rows = [self._item(key) for key in keys]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _item(self, key: str) -> dict[str, Tensor]:
        shard, group, row = self._places[key]
        path, names = self._shards[shard]
        if shard not in self._open:
            self._open[shard] = safe_open(path, "pt")
        return {name: self._open[shard].get_slice(f"{group}/{name}")[row] for name in names[group]}

    def _write(self) -> None:
        """Write what was gathered as one shard. Items with the same names, shapes and types form a group: one tensor a name."""
        if not self._waiting:
            return
        groups: dict[Any, list[str]] = {}
        for key, item in self._waiting.items():
            groups.setdefault(tuple((name, value.shape, value.dtype) for name, value in item.items()), []).append(key)
        tensors = {
            f"{i}/{name}": torch.stack([self._waiting[key][name] for key in keys])
            for i, (kind, keys) in enumerate(groups.items())
            for name, _, _ in kind
        }
        shard = self.folder / f"{fingerprint(list(groups.values()))}.safetensors"
        write_tensors(shard, tensors, {"keys": json.dumps(list(groups.values()))})
        self._waiting, self._bytes = {}, 0
        self._index(shard)

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                tensor_keys, keys = list(file.keys()), json.loads((file.metadata() or {})["keys"])
        except (SafetensorError, KeyError, ValueError):
            shard.unlink()  # damaged, or not a shard: its items are made again
            return
        names: list[list[str]] = [[] for _ in keys]
        for key in tensor_keys:
            group, _, name = key.partition("/")
            names[int(group)].append(name)
        number = len(self._shards)
        self._shards.append((shard, names))
        for group, rows in enumerate(keys):
            for row, key in enumerate(rows):
                self._places.setdefault(key, (number, group, row))
