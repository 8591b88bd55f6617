"""Aesthetic heads folded into one vector, diversity within a prompt, and which files are opened."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from spinlite.errors import SpinliteError
from spinlite.evaluate import weights as opening
from spinlite.evaluate.heads import COLUMNS, distance, head, vendi
from spinlite.evaluate.prompts import Prompts
from spinlite.evaluate.scorer import Ground
from spinlite.evaluate.weights import Place, Weights, read
from spinlite.memory.device import choose_device
from tests.evaluate.test_clips import noise


def published() -> nn.Module:
    """The head of the aesthetic score v2 as it is published: linear layers, dropouts between them, no activations."""
    torch.manual_seed(0)
    chain = [nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1),
             nn.Linear(64, 16), nn.Linear(16, 1)]  # fmt: skip
    return nn.ModuleDict({"layers": nn.Sequential(*chain)})


def test_the_folded_head_scores_as_the_chain_does(tmp_path: Path):
    model: Any = published().eval()
    save_file(model.state_dict(), tmp_path / "aes.safetensors")
    found = Weights(choose_device(), {"aes_v2": tmp_path / "aes.safetensors", "aes_v1": tmp_path / "v1.safetensors"})
    linear = nn.Linear(768, 1)
    save_file(linear.state_dict() | {"vision_model.x": noise(2)}, tmp_path / "v1.safetensors")
    shown = F.normalize(noise(3, 2, 768), dim=-1)
    ground = Ground(Prompts("", [], False), {}, found)
    for column, net in zip(COLUMNS[:2], (linear, model["layers"]), strict=True):
        torch.testing.assert_close(column.score({"embedding": shown}, ground), net(shown)[..., 0].double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", [("weight", "bias"), ("predictor.weight", "predictor.bias")])
def test_the_older_head_is_one_layer_alone_or_with_its_tower(names: tuple[str, str], tmp_path: Path):
    weight, bias = noise(1, 768), noise(1)
    save_file({names[0]: weight, names[1]: bias, "visual_projection.weight": noise(2, 2)}, tmp_path / "v1.safetensors")
    found = head(tmp_path / "v1.safetensors")
    assert torch.equal(found[0].float(), weight) and torch.equal(found[1].float(), bias)


def test_a_file_without_a_head_is_refused(tmp_path: Path):
    save_file({"visual_projection.weight": noise(2, 2)}, tmp_path / "clip.safetensors")
    with pytest.raises(SpinliteError, match="holds no aesthetic head"):
        head(tmp_path / "clip.safetensors")


def test_diversity_is_0_where_all_are_alike_and_counts_what_is_apart():
    alike, apart = torch.eye(4)[[0, 0, 0, 0]], torch.eye(4)
    halves = torch.eye(4)[[0, 0, 1, 1]]
    shown = torch.stack([alike, apart, halves])
    assert distance(shown).tolist() == pytest.approx([0, 1, 2 / 3], abs=1e-9)  # 4 of 6 pairs are apart
    assert vendi(shown).tolist() == pytest.approx([1, 4, 2], abs=1e-6)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_that_is_not_pinned_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "model.bin", "model"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(SpinliteError, match="is not opened: its SHA-256"):
            read(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_pinned_file_is_opened_and_runs_no_code_even_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def pin(path: Path) -> None:
        monkeypatch.setattr(opening, "PINNED", {hashlib.sha256(path.read_bytes()).hexdigest(): path.name})

    tensors: dict[str, Tensor] = {"visual.proj": noise(2, 2), "other": noise(1)}
    torch.save({"epoch": 1, "state_dict": tensors}, tmp_path / "hps.pt")
    pin(tmp_path / "hps.pt")
    assert read(tmp_path / "hps.pt").keys() == tensors.keys() and read(tmp_path / "hps.pt", ["visual."]).keys() == {
        "visual.proj"
    }
    torch.save(Bomb(), tmp_path / "bomb.pt")
    pin(tmp_path / "bomb.pt")
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_file_and_one_that_is_nowhere_are_said(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(SpinliteError, match="is damaged"):
        read(tmp_path / "x.safetensors")
    with pytest.raises(SpinliteError, match="no weights for x") as error:
        Weights(choose_device()).find("x", [Place("who/x", "x.safetensors", 2.0)])
    assert error.value.fix.endswith("download x.safetensors (2 GB) from who/x and add --weights x=FILE")
