from pathlib import Path

import pytest
import torch

from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store, read_tensors, write_tensors


def test_a_store_gives_back_what_was_added_in_the_order_asked(tmp_path: Path):
    store = Store(tmp_path / "s")
    x = torch.randn(3, 2, 2)
    store.add(["a", "b", "c"], {"x0": x, "size": torch.arange(3)})
    for again in (store, Store(tmp_path / "s")):
        got = again.get(["c", "a"])
        assert torch.equal(got["x0"], x[[2, 0]]) and got["size"].tolist() == [2, 0]
        assert "b" in again and "d" not in again


def test_adding_what_is_there_changes_nothing(tmp_path: Path):
    store = Store(tmp_path / "s")
    store.add(["a"], {"x0": torch.zeros(1, 2)})
    store.add(["a", "b"], {"x0": torch.ones(2, 2)})
    for again in (store, Store(tmp_path / "s")):
        assert again.get(["a", "b"])["x0"].tolist() == [[0, 0], [1, 1]]


def test_a_shard_cut_short_is_made_again(tmp_path: Path):
    store = Store(tmp_path / "s")
    store.add(["a"], {"x0": torch.zeros(1, 2)})
    shard = next((tmp_path / "s").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:20])
    assert "a" not in Store(tmp_path / "s")


def test_a_draft_is_not_read(tmp_path: Path):
    store = Store(tmp_path / "s")
    store.add(["a"], {"x0": torch.zeros(1, 2)})
    shard = next((tmp_path / "s").glob("*.safetensors"))
    shard.rename(shard.with_name(shard.name + ".part"))
    assert "a" not in Store(tmp_path / "s")


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(SpinliteError, match=r"x\.safetensors is damaged"):
        read_tensors(tmp_path / "x.safetensors")


def test_shared_and_strided_tensors_are_written_as_they_read(tmp_path: Path):
    x = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"a": x, "b": x, "c": x.t()}, {"k": "v"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["c"], x.t()) and torch.equal(tensors["a"], tensors["b"]) and metadata == {"k": "v"}


def test_a_fingerprint_names_what_something_is_made_of():
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1}) != fingerprint("a", {"x": 2, "y": 2})
    assert len(fingerprint("a")) == 16
