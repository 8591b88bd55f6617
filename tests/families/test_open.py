"""Where a base model lies: paths and hub ids, files in half precision, and parts that leave when they have done their work."""

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spinlite.config.settings import Model
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import locate
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.open import open_checkpoint
from spinlite.memory import device
from spinlite.runs.files import fingerprint_files
from spinlite.training.animation import strip
from tests.families import tiny

CPU = device.Device(torch.device("cpu"), "a test")


def load(base: Path | str, **settings) -> Family:
    return load_family(Model(base=str(base), **settings), CPU)


def test_a_part_that_would_not_be_used_is_refused(tiny_bases: Path, flow_configs: Path):
    for base, part in (
        (flow_configs / "klein-4b", "vae"),
        (flow_configs / "wan", "text_encoder"),
        (tiny_bases / "sd15", "text_encoder"),
    ):
        with pytest.raises(SpinliteError, match=rf"model\.{part} = 'mine' would not be used") as caught:
            load(base, **{part: "mine"})
        assert caught.value.fix == f"add --set model.{part}=none"


NOWHERE = ["./nowhere", "../nowhere/x", "nowhere", "~/nowhere", "models/sub/x", "C:\\models\\x", "/nowhere/x"]


@pytest.mark.parametrize("name", NOWHERE)
def test_a_path_to_nothing_is_refused_before_the_hub_is_asked(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(SpinliteError, match=r"there is no folder or file .*\nfix: check model\.base"):
        load(name)


def test_a_missing_neighbour_of_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpinliteError, match="there is no folder or file models/nowhere"):
        locate("models/nowhere", "model.base")
    (tmp_path / "models" / "x.gguf").touch()
    with pytest.raises(SpinliteError, match=r"neither a \.safetensors file nor a folder"):
        locate("models/x.gguf", "model.base")
    assert locate("owner/name-1.0_x", "model.base") == "owner/name-1.0_x"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert locate("~/models", "model.base") == str(tmp_path / "models")


def test_a_vae_that_is_nowhere_is_refused_at_once(tiny_bases: Path):
    with pytest.raises(SpinliteError, match=r"there is no folder or file \./vae\nfix: check model\.vae"):
        load(tiny_bases / "sd15", vae="./vae")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_folder_with_fp16_files_alone_is_read(kind: str, tiny_bases: Path, tmp_path: Path):
    shutil.copytree(tiny_bases / kind, tmp_path / kind)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for path in (tmp_path / kind / part).glob("*.safetensors"):
            tiny.save(path.with_name(f"{path.stem}.fp16.safetensors"), {k: v.half() for k, v in load_file(path).items()})
            path.unlink()
    here, there = (open_checkpoint(str(root / kind)) for root in (tmp_path, tiny_bases))
    for part in ("unet", "vae", "text_encoder"):
        halved, whole = (x.load(part, torch.float32).state_dict() for x in (here, there))
        assert all(torch.equal(halved[name], whole[name].half().float()) for name in whole)
    made = load(tmp_path / kind, vae=str(tmp_path / kind))
    assert strip(made.decode(torch.zeros(1, 4, 8, 8))[0]).size == (64, 64)


def test_vae_and_text_encoders_are_gone_after_encoding(tiny_bases: Path, tmp_path: Path):
    made: Any = load(tiny_bases / "sdxl")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    seen: list[weakref.ref] = []
    part = made._part
    made._part = lambda name: (seen.append(weakref.ref(part(name))), part(name))[1]
    record = Record(tmp_path / "a.png", "a cat", fingerprint_files([tmp_path / "a.png"]))
    Encoded(made, [record], tmp_path, 1, lambda done, of: None)
    assert len(seen) >= 5 and not any(ref() for ref in seen)
