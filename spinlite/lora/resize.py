"""A LoRA file of anyone's at a lower rank, in the layout that it has."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from spinlite.lora.layouts import to_diffusers, to_kohya
from spinlite.lora.metadata import compute_hashes, network_keys
from spinlite.lora.read import LoraFile, open_lora
from spinlite.lora.svd import lower_rank, total_error
from spinlite.lora.tensors import Lora, Pair, describe_ranks, norm
from spinlite.runs.store import write_bytes


@dataclass(frozen=True)
class ResizeReport:
    """What was lost, relative to each change (Frobenius norms), measured on the file that was written."""

    rank: str  # before, in words
    errors: Mapping[str, float]  # by what the file calls the module
    total: float  # of all changes together
    size: int  # bytes


def resize(path: Path, rank: int, to: Path) -> ResizeReport:
    """Write a LoRA file with no module above `rank`; smaller ones stay as they are. Header and precision are kept.

    Raises SpinliteError for what is no plain LoRA, and where nothing would become smaller.
    """
    file = open_lora(path)
    if any("magnitude" in parts for parts in file.parts.values()):
        raise file.error("is a DoRA: its magnitudes belong to its directions", "resize a plain LoRA")
    before = {name: file.pair(name) for name in file.parts}
    if all(pair.rank <= rank for pair in before.values()):
        raise file.error(
            f"has rank {describe_ranks(before)} already", f"give a --rank below {max(p.rank for p in before.values())}"
        )
    after = {name: lower_rank(pair, rank)[0] if pair.rank > rank else pair for name, pair in before.items()}
    dtype = Counter(parts["up"].dtype for parts in file.parts.values()).most_common(1)[0][0]
    tensors, alpha = _tensors(file, after, dtype)
    with safe_open(path, "pt") as content:
        tensors |= {key: content.get_tensor(key) for key in file.foreign}
    errors = {file.written[n]: e for n, e in _measured(file, tensors, before, alpha).items()}
    lost = total_error(errors, {file.written[name]: pair for name, pair in before.items()})
    said = _header(file, after, alpha, to.stem, {"rank": rank, "before": describe_ranks(before), "error": round(lost, 6)})
    content = save(tensors, {**said, **compute_hashes(tensors, said)})
    write_bytes(to, content)
    return ResizeReport(describe_ranks(before), errors, lost, len(content))


def _tensors(file: LoraFile, lora: Lora, dtype: torch.dtype) -> tuple[dict[str, Tensor], float | None]:
    """(tensors under the keys that they had, alpha where the file has it): one alpha for all, or the rank without."""
    if any("alpha" in parts for parts in file.parts.values()):
        made, alpha = to_kohya(lora, str, dtype)
        ends = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    else:
        made, alpha, ends = to_diffusers(lora, dtype), None, {"down": "lora_A.weight", "up": "lora_B.weight"}
    return {_key(file, name, part): made[f"{name}.{end}"] for name in lora for part, end in ends.items()}, alpha


def _key(file: LoraFile, name: str, part: str) -> str:
    """What the file calls a tensor; an alpha may be missing."""
    return file.keys.get((name, part), f"{file.written[name]}.{part}")


def _measured(file: LoraFile, tensors: Mapping[str, Tensor], before: Lora, alpha: float | None) -> dict[str, float]:
    """How far what is written is from what was there: the difference of two products is one of twice the rank."""
    found: dict[str, float] = {}
    for name, pair in before.items():
        down, up = (tensors[_key(file, name, part)].float() for part in ("down", "up"))
        up = up * (1.0 if alpha is None else alpha / len(down))
        length = norm(pair)
        apart = norm(Pair(torch.cat([pair.down, down]), torch.cat([pair.up, -up], 1)))
        found[name] = apart / length if length else apart
    return found


def _header(file: LoraFile, lora: Lora, alpha: float | None, title: str, how: Mapping[str, object]) -> dict[str, str]:
    """What was there, with what the smaller rank changes."""
    said = {key: value for key, value in file.metadata.items() if key != "lora_adapter_metadata"}  # its alphas are folded in
    if "ss_network_dim" in said:
        said |= network_keys(lora, alpha)
    for key in ("ss_output_name", "modelspec.title"):
        if key in said:
            said[key] = title
    said |= {f"{name}:rank": str(pair.rank) for name, pair in lora.items() if f"{name}:rank" in said}  # cloneofsimo's
    return said | {"spinlite.resized": json.dumps(how)}
