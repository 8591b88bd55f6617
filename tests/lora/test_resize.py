"""A LoRA file at a lower rank: its layout, header and precision stay, and what is lost is measured."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spinlite.errors import SpinliteError
from spinlite.lora.file import read_lora_file
from spinlite.lora.layouts import to_kohya
from spinlite.lora.read import read_pairs
from spinlite.lora.resize import resize
from spinlite.lora.svd import lower_rank
from spinlite.lora.tensors import Pair
from spinlite.runs.store import read_tensors
from tests.families import tiny
from tests.lora.test_start import KIND, layouts, load_base, lora_of


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layout_keeps_its_keys_and_the_largest_directions(kind: str, tiny_bases: Path, tmp_path: Path):
    lora = lora_of(load_base(tiny_bases / kind).net, 24)
    numbered = {f"unet:{i}:{end}": getattr(pair, end) for i, pair in enumerate(lora.values()) for end in ("up", "down")}
    ranks = {f"unet:{i}:rank": str(pair.rank) for i, pair in enumerate(lora.values())}
    every = {**layouts(lora, KIND[kind]), "numbered": (numbered, ranks)}
    for name, (tensors, metadata) in every.items():
        path = tiny.save(tmp_path / "x.safetensors", tensors, metadata)
        found = resize(path, 1, tmp_path / "y.safetensors")
        before, after = read_lora_file(path), read_lora_file(tmp_path / "y.safetensors")
        pairs, made = read_pairs(before), read_pairs(after)
        assert after.keys == before.keys and after.layout == before.layout, name
        assert "lora_adapter_metadata" not in after.metadata and found.rank == "2 to 3"
        for module in before.parts:
            wanted, lost = lower_rank(pairs[module], 1)
            got = made[module]
            assert got.rank == 1 and got.shape == wanted.shape
            assert_close(got.change, wanted.change, rtol=1e-3, atol=1e-5, msg=f"{name}: {module}")
            assert found.errors[before.written[module]] == pytest.approx(lost, abs=1e-3)
        if name == "numbered":
            assert set(after.metadata[key] for key in ranks) == {"1"}


def test_header_precision_and_smaller_modules_stay(tmp_path: Path):
    torch.manual_seed(0)
    wide, small = Pair(torch.randn(8, 6, 3, 3), torch.randn(9, 8, 1, 1)), Pair(torch.randn(2, 6), torch.randn(9, 2))
    tensors = to_kohya({"lora_unet_a": wide, "lora_unet_b": small}, str, torch.float16)[0]
    said = {
        "ss_network_dim": "Dynamic", "ss_network_alpha": "9", "ss_network_args": "{}", "ss_output_name": "x",
        "modelspec.title": "x", "ss_tag_frequency": "{}", "sshs_model_hash": "0", "own": "ünï",
    }  # fmt: skip
    path = tiny.save(tmp_path / "x.safetensors", tensors | {"else": torch.ones(2)}, said)
    found = resize(path, 4, tmp_path / "small.safetensors")
    made, header = read_tensors(tmp_path / "small.safetensors")
    assert made.keys() == tensors.keys() | {"else"} and {t.dtype for k, t in made.items() if k != "else"} == {torch.float16}
    assert header["ss_network_dim"] == "Dynamic" and header["ss_output_name"] == header["modelspec.title"] == "small"
    assert json.loads(header["ss_network_args"])["conv_dim"] == "4" and header["own"] == "ünï"
    content = (tmp_path / "small.safetensors").read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == digest and header["modelspec.hash_sha256"] == f"0x{digest}"
    told = json.loads(header["spinlite.resized"])
    assert told == {"rank": 4, "before": "2 to 8", "error": pytest.approx(found.total, abs=1e-6)}
    assert found.errors["lora_unet_b"] < 2e-3 < 0.1 < found.errors["lora_unet_a"] < 1 and 0.1 < found.total < 1
    assert found.size == len(content) < path.stat().st_size


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_a_file_of_small_numbers_keeps_its_change(dtype: torch.dtype, tmp_path: Path):
    """A small alpha would be 0 in fp8: the file would do nothing."""
    torch.manual_seed(0)
    pair = Pair(torch.randn(8, 64), torch.randn(64, 8) * 1e-6)
    tensors, alpha = to_kohya({"lora_unet_a": pair}, str, dtype)
    assert tensors["lora_unet_a.alpha"].item() == alpha > 0
    found = resize(tiny.save(tmp_path / "x.safetensors", tensors), 4, tmp_path / "y.safetensors")
    made = read_pairs(read_lora_file(tmp_path / "y.safetensors"))["lora_unet_a"]
    wanted, lost = lower_rank(pair, 4)
    assert (made.change - wanted.change).norm() < 0.2 * wanted.change.norm() and found.total == pytest.approx(lost, abs=0.05)
    assert read_tensors(tmp_path / "y.safetensors")[0]["lora_unet_a.lora_up.weight"].dtype == dtype


def test_numbers_of_every_type_are_read_as_torch_reads_them(tmp_path: Path):
    bytes_ = torch.arange(256, dtype=torch.uint8)
    kinds = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64]
    stored = {str(kind): bytes_.repeat(kind.itemsize).view(kind) for kind in kinds} | {
        "i": torch.arange(-5, 5),
        "b": bytes_ > 9,
    }
    path = tiny.save(tmp_path / "x.safetensors", {f"lora_{name}.alpha": value for name, value in stored.items()})
    file = read_lora_file(path)
    for name, value in stored.items():
        got = torch.from_numpy(file.parts[f"lora_{name}"]["alpha"].numbers())
        assert_close(got, value.float(), equal_nan=True, rtol=0, atol=0, msg=name)


def test_what_can_not_be_resized_is_named(tmp_path: Path):
    tensors = to_kohya({"lora_unet_a": Pair(torch.randn(4, 6), torch.randn(9, 4))}, str, torch.float32)[0]
    path, to = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    with pytest.raises(SpinliteError, match=r"has rank 4 already\nfix: give a --rank below 4"):
        resize(tiny.save(path, tensors), 4, to)
    with pytest.raises(SpinliteError, match="is a DoRA"):
        resize(tiny.save(path, tensors | {"lora_unet_a.dora_scale": torch.ones(9, 1)}), 2, to)
    with pytest.raises(SpinliteError, match="is a LoHa, not a plain LoRA"):
        resize(tiny.save(path, {"lora_unet_a.hada_w1_a": torch.ones(2, 2)}), 2, to)
    with pytest.raises(SpinliteError, match=r"parts of a LoRA in a layout that .* can't read, e\.g\. text\.lora\.magic"):
        resize(tiny.save(path, tensors | {"text.lora.magic": torch.ones(1)}), 2, to)
    assert not to.exists()
