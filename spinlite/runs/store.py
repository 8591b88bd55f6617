"""Tensors on disk: a `Store` is a folder of append-only shards, named by the hash of what its items were made from.

A shard is one safetensors file. It is written whole or not at all, and never changed.
"""

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.runs.checksum import find_damage, read_header, seal
from spinlite.runs.disk import remove_drafts, require_room, write_bytes
from spinlite.runs.files import fingerprint
from spinlite.runs.lock import hold

SHARD = 2**27  # bytes; a shard is written when so much has gathered
SAVE_SECONDS = 10.0  # a run that is killed loses at most the items of so much time
WAIT = 60.0  # s; two runs may need the same items, and the second waits so long for the first to write them
OURS = re.compile(r"[0-9a-f]{16}\.safetensors")  # a shard's name
Place = tuple[int, int, int]  # (shard, group, row)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, **how: Any) -> None:
    """Write a safetensors file with a checksum, whole or not at all, even if the power fails. `how` is for `write_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_bytes(path, seal(save(plain), metadata or {}), **how)


def read_tensors(path: Path, fix: str = "delete it and run the same command") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises SpinliteError with this `fix` if it is missing or damaged.

    The file is read as a whole: Windows can't replace one that is mapped into memory, and a `get_tensor` of safetensors leaks
    64 bytes.
    """
    if not path.exists():
        raise SpinliteError(f"{path} is missing", fix=fix)
    try:
        if damage := find_damage(path):
            raise SpinliteError(f"{path} is damaged: {damage}", fix=fix)
        tensors = load(path.read_bytes())
        return tensors, {key: value for key, value in read_header(path).items() if key != "crc32"}
    except SafetensorError as error:
        raise SpinliteError(f"{path} is damaged: {error}", fix=fix) from None


def find_fault(path: Path, name: str) -> str:
    """Why a file that can be made again is of no use; "" if it is whole and was written with this "name" in its metadata."""
    try:
        metadata = read_tensors(path)[1]
    except SpinliteError as error:
        return error.problem
    return "" if metadata.get("name", name) == name else f"{path} is a copy of another file"


class Store:
    """Items by key. An item is a few named tensors; `get` stacks several items.

    Items stay on disk until `get` reads them; only the index is in memory, some 200 bytes an item. Without a block each `add`
    writes a shard. Within `with store:` items are gathered into larger shards, and all are written when the block ends, also
    by an error. Only one process at a time writes: a second waits, then finds what the first has written.

    A shard's checksum is compared when an item of it is first asked for. The items of a damaged shard count as missing, and
    its name is added to `damaged`. Files that are not the store's own are left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self._places: dict[str, Place] = {}
        self._shards: list[tuple[Path, list[list[str]]]] = []  # (path, tensor names of each group)
        self._whole: set[int] = set()  # shards whose checksum was found right
        self._open: dict[int, dict[str, Tensor]] = {}  # the tensors of the shards in use, read from disk as they are touched
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._block: contextlib.ExitStack | None = None
        self._bytes, self._since = 0, 0.0
        self._expected = 0
        self.reread()

    def __contains__(self, key: str) -> bool:
        while (place := self._places.get(key)) and place[0] not in self._whole:
            self._check(place[0])
        return place is not None or key in self._waiting

    def __len__(self) -> int:
        return len(self._places) + len(self._waiting)

    def __enter__(self) -> "Store":
        with contextlib.ExitStack() as block:
            block.enter_context(hold(self.folder, WAIT))
            remove_drafts(self.folder)
            self.reread()  # what another process has written meanwhile
            self._block = block.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        block, self._block = self._block, None
        with block or contextlib.nullcontext():
            self._write()

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Add one item for each key; tensors are (B, ...), a row for each. Items that are there already stay as they are."""
        if not self._block:
            with self:
                return self.add(keys, tensors)
        if not self._waiting:
            self._since = time.monotonic()
        for i, key in enumerate(keys):
            if key not in self:
                self._waiting[key] = {name: value[i].detach().cpu() for name, value in tensors.items()}
                self._bytes += sum(value.nbytes for value in self._waiting[key].values())
        if self._expected and self._waiting:  # the first tell how large the others will be
            needed, count = self._bytes * self._expected // len(self._waiting), self._expected
            self._expected = 0
            require_room(self.folder, needed, f"{count} items")
        if self._bytes >= SHARD or time.monotonic() - self._since >= SAVE_SECONDS:
            self._write()

    def expect(self, count: int) -> None:
        """Say how many items will be added. With the first, `add` raises SpinliteError if the disk has no room for all."""
        self._expected = count

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors (B, ...) on the CPU, one row for each key. The items must have one shape.

        Raises SpinliteError if an item is missing, because its shard was damaged or removed meanwhile.
        """
        self._write()
        rows = [self._item(key) for key in keys]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _item(self, key: str) -> dict[str, Tensor]:
        if key not in self:
            what = f"{', '.join(self.damaged)} is damaged" if self.damaged else f"the item {key} is not there"
            raise SpinliteError(f"{self.folder}: {what}", fix="type the same command again: it makes the missing items again")
        shard, group, row = self._places[key]
        path, names = self._shards[shard]
        if shard not in self._open:
            with safe_open(path, "pt") as file:
                self._open[shard] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: self._open[shard][f"{group}/{name}"][row] for name in names[group]}

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
        write_tensors(shard, tensors, {"keys": json.dumps(list(groups.values())), "store": self.folder.name})
        self._waiting, self._bytes = {}, 0
        self._index(shard)
        self._whole.add(len(self._shards) - 1)

    def reread(self) -> None:
        """Find what another process has written meanwhile: index the shards that are not known yet."""
        known = {path for path, _ in self._shards}
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in known and OURS.fullmatch(shard.name):
                self._index(shard)

    def _check(self, number: int) -> None:
        """Compare a shard's checksum; forget its items, and remove it, if it is damaged."""
        path, _ = self._shards[number]
        if path.exists() and not find_damage(path):
            self._whole.add(number)
            return
        self._places = {key: place for key, place in self._places.items() if place[0] != number}
        self._remove(path)

    def _remove(self, shard: Path) -> None:
        self.damaged.append(shard.name)
        shard.unlink(missing_ok=True)

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                tensor_keys, metadata = list(file.keys()), file.metadata() or {}
        except SafetensorError:
            self._remove(shard)
            return
        if "keys" not in metadata or metadata.get("store", self.folder.name) != self.folder.name:
            return  # not a shard, or one of another store
        try:
            self._place(shard, json.loads(metadata["keys"]), tensor_keys)
        except (ValueError, LookupError, TypeError):  # a shard of which the list of items is damaged
            self._remove(shard)

    def _place(self, shard: Path, keys: list[list[str]], tensor_keys: Sequence[str]) -> None:
        """Remember where the items of a shard are."""
        names: list[list[str]] = [[] for _ in keys]
        for key in tensor_keys:
            group, _, name = key.partition("/")
            names[int(group)].append(name)
        number = len(self._shards)
        self._shards.append((shard, names))
        for group, rows in enumerate(keys):
            for row, key in enumerate(rows):
                self._places.setdefault(key, (number, group, row))
