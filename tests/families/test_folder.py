"""Folders in diffusers' layout that are not what they seem: each is refused at once, in one line, before it is loaded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families import hub
from spinlite.families.load import load_family, require_base
from spinlite.families.open import open_checkpoint
from spinlite.memory import device
from tests.families import tiny

CPU = device.Device(torch.device("cpu"), "a test")


@pytest.fixture
def base(tiny_bases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bases / "sdxl", tmp_path / "base"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def shard(part: Path, second: str) -> dict[str, torch.Tensor]:
    """Cut a part's weights into two files and an index, which names the second one as given."""
    whole = part / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    names = sorted(weights)
    files = ["diffusion_pytorch_model-00001-of-00002.safetensors", second]
    half = len(names) // 2
    for name, keys in zip(files, (names[:half], names[half:]), strict=True):
        tiny.save(part / name, {key: weights[key] for key in keys})
    chosen = {key: files[i >= half] for i, key in enumerate(names)}
    index = {"metadata": {"total_size": 1}, "weight_map": chosen}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weights


SECOND = "diffusion_pytorch_model-00002-of-00002.safetensors"


def test_shards_are_loaded_and_all_of_them_name_the_base(base: Path):
    weights = shard(base / "unet", SECOND)
    checkpoint = open_checkpoint(str(base))
    loaded = checkpoint.load("unet", torch.float32).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    before = checkpoint.fingerprint()
    changed = load_file(base / "unet" / SECOND)
    changed[next(iter(changed))].add_(1)
    tiny.save(base / "unet" / SECOND, changed)
    assert open_checkpoint(str(base)).fingerprint() != before


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize(
    "second", ["../outside.safetensors", "../../x.safetensors", "x.bin", "sub/x.safetensors", "..\\x.safetensors"]
)
def test_an_index_that_leads_out_of_its_folder_or_to_a_pickle_is_refused(base: Path, part: str, second: str):
    shard(base / part, SECOND)
    index = base / part / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index.read_text(encoding="utf-8").replace(SECOND, json.dumps(second)[1:-1]), encoding="utf-8")
    with pytest.raises(SpinliteError, match=r"index\.json names .*only \.safetensors files of that folder"):
        open_checkpoint(str(base))


def test_another_vae_is_held_to_the_same_rule(base: Path, tiny_bases: Path):
    shard(base / "vae", "../outside.safetensors")
    with pytest.raises(SpinliteError, match=r"only \.safetensors files of that folder"):
        load_family(Model(base=str(tiny_bases / "sdxl"), vae=str(base)), CPU).decode(torch.zeros(1, 4, 8, 8))


def test_a_missing_shard_is_named(base: Path):
    shard(base / "unet", SECOND)
    (base / "unet" / SECOND).unlink()
    with pytest.raises(SpinliteError, match=f"incomplete: unet/{SECOND} is missing"):
        open_checkpoint(str(base))


def spoil(part: str, **changes: Any) -> Callable[[Path], None]:
    name = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
    return lambda base: edit(base / part / name, **changes)


def replace_by(place: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoiled(base: Path) -> None:
        (base / place).unlink()
        make(base / place)

    return spoiled


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda base: shutil.rmtree(base / "tokenizer"), "has no tokenizer"),
    "no second tokenizer": (lambda base: shutil.rmtree(base / "tokenizer_2"), "has no tokenizer_2"),
    "no second text encoder": (lambda base: shutil.rmtree(base / "text_encoder_2"), "has no text_encoder_2"),
    "no scheduler's file": (lambda base: (base / "scheduler" / "scheduler_config.json").unlink(), "has no scheduler/sched"),
    "size 0": (spoil("unet", sample_size=0), "unet/config.json says sample_size = 0, which is not a whole"),
    "size in words": (spoil("unet", sample_size="large"), 'says sample_size = "large"'),
    "size of a planet": (spoil("unet", sample_size=10**9), "says sample_size = 1000000000"),
    "no size": (spoil("unet", sample_size=None), "says sample_size = null"),
    "a list for a number": (spoil("unet", in_channels=[4]), r"says in_channels = \[4\]"),
    "levels that are no list": (spoil("vae", block_out_channels=8), "vae/config.json says block_out_channels = 8"),
    "scale NaN": (spoil("vae", scaling_factor=float("nan")), "says scaling_factor = NaN, which is not a number above 0"),
    "scale null": (spoil("vae", scaling_factor=None), "says scaling_factor = null"),
    "layers in words": (spoil("text_encoder", num_hidden_layers="two"), "num_hidden_layers"),
    "noise of nothing": (spoil("scheduler", beta_start=None), "scheduler/scheduler_config.json says beta_start = null"),
    "endless captions": (spoil("tokenizer", model_max_length=10**9), "model_max_length = 1000000000, but its .* 77"),
    "captions without length": (spoil("tokenizer", model_max_length=None), "model_max_length = None"),
    "a config that is no JSON": (lambda base: (base / "unet" / "config.json").write_text("{"), "can't read the base model"),
    "a config that is a list": (lambda base: (base / "vae" / "config.json").write_text("[1]"), "can't read the base model"),
    "a folder for a config": (replace_by("unet/config.json", Path.mkdir), "unet/config.json is not a plain file"),
    "a folder for weights": (replace_by("vae/diffusion_pytorch_model.safetensors", Path.mkdir), "tensors is not a plain file"),
}  # fmt: skip
if hasattr(os, "mkfifo"):
    BROKEN["a pipe for a config"] = (replace_by("unet/config.json", os.mkfifo), "unet/config.json is not a plain file")


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_can_not_be_a_model_is_refused_when_it_is_opened(what: str, base: Path):
    break_it, said = BROKEN[what]
    break_it(base)
    with pytest.raises(SpinliteError, match=said):
        require_base(Model(base=str(base)))


def test_other_folders_are_called_by_what_they_are(tmp_path: Path, tiny_bases: Path):
    flux = tmp_path / "flux"
    (flux / "transformer").mkdir(parents=True)
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(tiny_bases / "sd15.safetensors", models / "mine.safetensors")
    for place, said in (
        (flux, r"flux is a model of another kind \(FluxPipeline\)"),
        (models, r'has no unet: .*\nfix: name the file: --set model.base=".*mine.safetensors"'),
        (tiny_bases / "sd15" / "unet", "is one part of a model, not a whole one"),
    ):
        with pytest.raises(SpinliteError, match=said):
            require_base(Model(base=str(place)))
    named = tmp_path / "folder.safetensors"
    named.mkdir()
    with pytest.raises(SpinliteError, match=r"folder.safetensors is not a plain file"):
        require_base(Model(base=str(named)))


@pytest.mark.parametrize("change", [{"in_channels": 9}, {"in_channels": 8}])
def test_a_folder_for_another_task_is_named(base: Path, change: dict[str, int]):
    edit(base / "unet" / "config.json", **change)
    with pytest.raises(SpinliteError, match=r"made for (inpainting|editing pictures)"):
        require_base(Model(base=str(base)))


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_that_does_not_answer_is_said_in_one_line_before_anything_is_planned(environment: dict[str, str], tmp_path: Path):
    shared = {"HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "spinlite", "train", "sdxl-12gb", "--data", "demo", "--name", "x"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, **shared, **environment},
        timeout=120,
    )
    assert done.returncode != 0 and "Retry" not in done.stderr + done.stdout and "plan" not in done.stdout
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert sum("the hub can't be reached" in line for line in lines) == 1, lines


def test_a_model_in_the_cache_of_the_hub_is_used_without_the_hub(
    tiny_bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit, root = "0" * 40, tmp_path / "models--me--mine"
    shutil.copytree(tiny_bases / "sd15", root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "is_offline_mode", lambda: True)
    hub.list_files.cache_clear()
    made = load_family(Model(base="me/mine"), CPU)
    here = load_family(Model(base=str(tiny_bases / "sd15")), CPU)
    assert torch.equal(made.encode_captions(["a cat"])["prompt"], here.encode_captions(["a cat"])["prompt"])
    shutil.rmtree(root / "snapshots" / commit / "vae")
    with pytest.raises(SpinliteError, match="me/mine has no vae"):
        require_base(Model(base="me/mine"))
    hub.list_files.cache_clear()
