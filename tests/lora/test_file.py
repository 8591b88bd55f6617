"""LoRA files that somebody broke: each gives one clear error, whatever is wrong with it."""

import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Screen
from safetensors.torch import save
from torch import Tensor

from spinlite.cli import inspect_screen
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.families.kinds import KINDS
from spinlite.families.names import kohya_keys
from spinlite.lora.file import open_lora
from spinlite.lora.read import read_lora_for, read_pairs
from spinlite.lora.resize import resize
from tests.families import tiny

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"
WHOLE = {
    f"{QUERY}.lora_down.weight": torch.ones(4, 1280), f"{QUERY}.lora_up.weight": torch.ones(1280, 4),
    f"{QUERY}.alpha": torch.tensor(2.0), f"{CONV}.lora_down.weight": torch.ones(2, 1280, 1, 1),
    f"{CONV}.lora_mid.weight": torch.ones(2, 2, 3, 3), f"{CONV}.lora_up.weight": torch.ones(1280, 2, 1, 1),
    f"{DOTTED}.lora_A.weight": torch.ones(2, 768), f"{DOTTED}.lora_B.weight": torch.ones(1280, 2),
    f"{TEXT}.down.weight": torch.ones(2, 768), f"{TEXT}.up.weight": torch.ones(768, 2),
}  # fmt: skip
BROKEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "nan": ({f"{QUERY}.lora_up.weight": torch.full((1280, 4), torch.nan)}, r"is broken: .*to_q\.lora_up\.weight holds NaN"),
    "infinite": ({f"{QUERY}.lora_down.weight": torch.full((4, 1280), torch.inf)}, r"lora_down\.weight holds NaN or infinite"),
    "nan alpha": ({f"{QUERY}.alpha": torch.tensor(torch.nan)}, r"to_q\.alpha holds NaN"),
    "two alphas": ({f"{QUERY}.alpha": torch.ones(2)}, "has 2 numbers as alpha of .*to_q"),
    "alpha 0": ({f"{QUERY}.alpha": torch.tensor(0.0)}, "has alpha 0 for .*to_q"),
    "rank 0": ({f"{QUERY}.lora_down.weight": torch.ones(0, 1280), f"{QUERY}.lora_up.weight": torch.ones(1280, 0)}, "numbers"),
    "1-D": ({f"{QUERY}.lora_down.weight": torch.ones(1280)}, "that do not fit each other"),
    "a number": ({f"{QUERY}.lora_up.weight": torch.tensor(1.0)}, "that do not fit each other"),
    "unfit": ({f"{QUERY}.lora_up.weight": torch.ones(1280, 3)}, "that do not fit each other"),
    "5-D": ({f"{QUERY}.lora_up.weight": torch.ones(1280, 4, 1, 1, 1)}, "that do not fit each other"),
    "mid": ({f"{CONV}.lora_mid.weight": torch.ones(3, 3, 3, 3)}, "that do not fit each other"),
    "flat mid": ({f"{CONV}.lora_mid.weight": torch.ones(2)}, "that do not fit each other"),
    "too large": ({f"{QUERY}.lora_up.weight": torch.full((1280, 4), 3e38), f"{QUERY}.alpha": torch.tensor(1e9)}, "too large"),
    "twice": ({f"base_model.model.{DOTTED}.lora_A.weight": torch.ones(2, 768)}, "holds a module twice"),
}  # fmt: skip


def read(path: Path) -> None:
    known = KINDS["sd1"].lora.shapes()
    read_lora_for(path, kohya_keys(known, "sd1"), known, "a base")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_module_is_named_wherever_its_numbers_are_used(name: str, tmp_path: Path):
    changed, words = BROKEN[name]
    path = tiny.save(tmp_path / "x.safetensors", {**WHOLE, **changed})
    for use in (lambda: read(path), lambda: resize(path, 1, tmp_path / "y.safetensors"), lambda: read_pairs(open_lora(path))):
        with pytest.raises(SpinliteError, match=words):
            use()
    assert inspect(path).hash and not (tmp_path / "y.safetensors").exists()


def show(path: Path) -> None:
    """As `spinlite inspect` does, as a screen and as JSON."""
    report = inspect(path)
    inspect_screen.show(Screen(file=io.StringIO()), report)
    inspect_screen.as_json(report)


def write_raw(path: Path, kind: str, shape: list[int], data: bytes, key: str = f"{QUERY}.lora_up.weight") -> Path:
    header = json.dumps({key: {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(("kind", "size"), [("F4", 4), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("C64", 64)])
def test_numbers_of_a_type_that_is_not_known_are_named(kind: str, size: int, tmp_path: Path):
    path = write_raw(tmp_path / "x.safetensors", kind, [4, 2], bytes(size))
    inspect(path)
    with pytest.raises(SpinliteError, match=r"half of the module|which spinlite can't read"):
        read(path)


def mutate(rng: random.Random) -> bytes:
    """A LoRA file with one to three things wrong with it: a tensor, the header, the bytes."""
    tensors: dict[str, Tensor] = {key: value.clone() for key, value in WHOLE.items()}
    metadata = {"lora_adapter_metadata": "{}", "unet": '["CrossAttention"]'} if rng.random() < 0.5 else {}
    sizes = [[], [0], [1], [3], [0, 4], [4, 0], [1280, 4], [4, 1280], [2, 2, 3, 3], [1, 2, 3], [1, 1, 1, 1, 1]]
    kinds = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.int8, torch.bool]
    odd = [0.0, -1.0, 1e-40, 3e38, torch.inf, torch.nan]
    words = [
        "[" * 3000,
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.alpha_pattern": {"to_k": []}}',
        "1",
        "ü",
    ]
    names = ["unet:0:up", "unet:99999999999:down", "lora_unet_x.hada_w1_a", ".alpha", "lora_te_.lora_up.weight", "out.2.alpha"]
    changes: list[Callable[[str], Any]] = [
        lambda key: tensors.pop(key), lambda key: tensors.update({key: torch.ones(rng.choice(sizes))}),
        lambda key: tensors.update({key: tensors[key].to(rng.choice(kinds))}),
        lambda key: tensors.update({key: torch.full_like(tensors[key], rng.choice(odd))}),
        lambda key: tensors.update({rng.choice(names): torch.ones(rng.choice(sizes))}),
        lambda key: metadata.update({rng.choice(["lora_adapter_metadata", "unet", "ss_tag_frequency"]): rng.choice(words)}),
        lambda key: tensors.update({key.replace("lora_unet_mid_block_", "lora_unet_middle_block_1_"): tensors[key].clone()}),
    ]  # fmt: skip
    for _ in range(rng.randint(1, 3)):
        rng.choice(changes)(rng.choice(list(tensors)))
    content = bytearray(save(tensors, metadata or None))
    if rng.random() < 0.2:
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(min(len(content), 2000))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.05 else content)


def test_a_file_that_somebody_broke_gives_one_clear_error(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for seed in range(200):
        path.write_bytes(mutate(random.Random(seed)))
        for use in (show, read, lambda path: resize(path, 1, tmp_path / "y.safetensors")):
            with contextlib.suppress(SpinliteError):
                use(path)
