import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spinlite.errors import SpinliteError
from spinlite.runs import disk
from spinlite.runs.disk import write_bytes
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store, read_tensors, write_tensors
from tests.runs.faults import flip


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


FLIPS = [0.1, 0.5, 0.999]  # in the header, in the list of items or the first tensor, in the last


@pytest.mark.parametrize("place", FLIPS)
def test_a_flipped_bit_in_a_file_is_found(place: float, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(50)}, {"what": "a note"})
    flip(path, place)
    with pytest.raises(SpinliteError, match=r"x\.safetensors is damaged"):
        read_tensors(path)


def test_the_same_tensors_make_the_same_file(tmp_path: Path):
    for name in "ab":
        write_tensors(tmp_path / name, {"x": torch.arange(3), "y": torch.zeros(1)}, {"k": "v", "a": "b", "z": "ü"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_checksum_is_read_too(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"k": "v"})
    assert read_tensors(tmp_path / "x.safetensors")[1] == {"k": "v"}


@pytest.mark.parametrize("place", FLIPS)
def test_a_flipped_bit_in_a_shard_makes_its_items_missing_and_only_them(place: float, tmp_path: Path):
    store = Store(tmp_path / "s")
    store.add(["a"], {"x0": torch.randn(1, 50)})
    [shard] = (tmp_path / "s").glob("*.safetensors")
    flip(shard, place)
    store.add(["b"], {"x0": torch.ones(1, 50)})
    again = Store(tmp_path / "s")
    assert "a" not in again and "b" in again and again.damaged == [shard.name]
    again.add(["a"], {"x0": torch.zeros(1, 50)})
    assert Store(tmp_path / "s").get(["a", "b"])["x0"].sum() == 50


def test_a_shard_of_another_store_is_left_alone_and_not_read(tmp_path: Path):
    first, second = Store(tmp_path / "1"), Store(tmp_path / "2")
    first.add(["a"], {"x0": torch.zeros(1, 2)})
    second.add(["a"], {"x0": torch.ones(1, 2)})
    [shard] = (tmp_path / "1").glob("*.safetensors")
    shutil.copy(shard, tmp_path / "2" / shard.name)
    assert "a" not in Store(tmp_path / "2") and (tmp_path / "2" / shard.name).exists()


@pytest.mark.parametrize("name", ["mine.safetensors", "0123456789abcdef.safetensors"])
def test_a_file_that_the_store_did_not_write_stays(name: str, tmp_path: Path):
    store = Store(tmp_path / "s")
    store.add(["a"], {"x0": torch.zeros(1, 2)})
    save_file({"weight": torch.ones(2)}, tmp_path / "s" / name)
    (tmp_path / "s" / "broken.safetensors").write_bytes(b"not a tensor")
    again = Store(tmp_path / "s")
    assert "a" in again and len(again) == 1
    assert (tmp_path / "s" / name).exists() and (tmp_path / "s" / "broken.safetensors").exists()


def test_what_a_killed_command_left_half_written_is_removed(tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "0123456789abcdef.safetensors.77.part").write_bytes(b"half")
    Store(tmp_path / "s").add(["a"], {"x0": torch.zeros(1, 2)})
    assert not list((tmp_path / "s").glob("*.part"))


def test_a_full_disk_is_said_with_what_is_missing_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync", full)
    with pytest.raises(SpinliteError, match=r"the disk is full: .*x needs 3\.0 MB, and .* are free") as caught:
        write_bytes(tmp_path / "x", bytes(3 * 2**20))
    assert "type the same command again" in caught.value.fix and not list(tmp_path.iterdir())


def test_a_store_says_with_its_first_items_whether_all_will_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spinlite.runs.disk.shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 3000))  # pyright: ignore
    some = {"x": torch.zeros(2, 100)}  # 400 bytes each
    with Store(tmp_path / "s") as store:
        store.expect(7)
        store.add(["a", "b"], some)
    with pytest.raises(SpinliteError) as caught, Store(tmp_path / "s") as store:
        store.expect(8)
        store.add(["c", "d"], some)
    assert "no room for 8 items" in caught.value.problem and "0 MB" in caught.value.problem
    assert "the same command again" in caught.value.fix and set("abcd") <= set(Store(tmp_path / "s")._places)


def test_the_old_file_stays_until_the_new_one_was_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, before = tmp_path / "x", tmp_path / "before"
    write_tensors(path, {"a": torch.zeros(1)}, before=before)
    write_tensors(path, {"a": torch.ones(1)}, before=before)
    assert read_tensors(before)[0]["a"] == 0 and read_tensors(path)[0]["a"] == 1
    monkeypatch.setattr(disk, "sync", lambda handle: os.pwrite(handle, b"\xff", 100))
    with pytest.raises(OSError, match="reads back differently"):
        write_tensors(path, {"a": torch.ones(1)}, before=before)
    assert read_tensors(before)[0]["a"] == 0 and read_tensors(path)[0]["a"] == 1
