"""Lower the rank of a LoRA file that any program wrote; its layout stays."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from spinlite.lora.file import LoraFile, open_lora
from spinlite.lora.layouts import to_diffusers, to_kohya
from spinlite.lora.metadata import compute_hashes, network_keys
from spinlite.lora.read import read_pairs
from spinlite.lora.svd import lower_rank, total_error
from spinlite.lora.tensors import Lora, Pair, changes_nothing, describe_ranks, norm
from spinlite.runs.disk import write_bytes


@dataclass(frozen=True)
class ResizeReport:
    """What was lost: relative errors (Frobenius norms) of the changes, measured on the file that was written."""

    rank: str  # before, in words: "32" or "8 to 32"
    errors: Mapping[str, float]  # by the module's name in the file
    total: float  # over all changes together
    nothing: bool  # whether the LoRA changes nothing, before and after
    size: int  # bytes


def resize(path: Path, rank: int, to: Path) -> ResizeReport:
    """Write the LoRA file `to` with no module above `rank`. Modules of smaller rank, the header and the precision are kept.

    What is lost is measured on the file as it is read back.

    Raises SpinliteError if the file is not a plain LoRA, or if no module has a higher rank.
    """
    file = open_lora(path)
    if any("magnitude" in parts for parts in file.parts.values()):
        raise file.error("is a DoRA: its magnitudes fit only its own matrices, so it can't be resized", "resize a plain LoRA")
    if strange := [key for key in file.foreign if "lora" in key.lower()]:
        raise file.error(f"holds parts of a LoRA in a layout that spinlite can't read, e.g. {strange[0]}", "use another copy")
    before = read_pairs(file)
    if all(pair.rank <= rank for pair in before.values()):
        raise file.error(
            f"has rank {describe_ranks(before)} already", f"give a --rank below {max(p.rank for p in before.values())}"
        )
    after = {name: lower_rank(pair, rank)[0] if pair.rank > rank else pair for name, pair in before.items()}
    with safe_open(path, "pt") as content:
        dtype = Counter(content.get_tensor(file.keys[name, "up"]).dtype for name in after).most_common(1)[0][0]
        foreign = {key: content.get_tensor(key) for key in file.foreign}
    tensors, alpha = _tensors(file, after, dtype)
    tensors |= foreign
    header = _header(file, after, alpha, to.stem)
    write_bytes(to, save(tensors, header))
    errors = _measure_errors(read_pairs(open_lora(to)), before)
    total = total_error(errors, before)
    header["spinlite.resized"] = json.dumps({"rank": rank, "before": describe_ranks(before), "error": round(total, 6)})
    content = save(tensors, {**header, **compute_hashes(tensors, header)})
    write_bytes(to, content)
    by_name = {file.written[name]: error for name, error in errors.items()}
    return ResizeReport(describe_ranks(before), by_name, total, changes_nothing(before), len(content))


def _tensors(file: LoraFile, lora: Lora, dtype: torch.dtype) -> tuple[dict[str, Tensor], float | None]:
    """(tensors under their old keys, alpha). The new file has one alpha for all modules, or none (None) if the old has none."""
    if any("alpha" in parts for parts in file.parts.values()):
        written, alpha = to_kohya(lora, str, dtype)
        ends = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    else:
        written, alpha, ends = to_diffusers(lora, dtype), None, {"down": "lora_A.weight", "up": "lora_B.weight"}
    return {_key(file, name, part): written[f"{name}.{end}"] for name in lora for part, end in ends.items()}, alpha


def _key(file: LoraFile, name: str, part: str) -> str:
    """The tensor's key in the file; a new one for an alpha that the file lacks."""
    return file.keys.get((name, part), f"{file.written[name]}.{part}")


def _measure_errors(written: Lora, before: Lora) -> dict[str, float]:
    """Relative error of each module's change in the file. The difference of two pairs is a pair too, of twice the rank."""
    errors: dict[str, float] = {}
    for name, pair in before.items():
        size, got = norm(pair), written[name]
        difference = norm(Pair(torch.cat([pair.down, got.down]), torch.cat([pair.up, -got.up], 1)))
        errors[name] = difference / size if size else difference
    return errors


def _header(file: LoraFile, lora: Lora, alpha: float | None, title: str) -> dict[str, str]:
    """The file's header, with the keys changed that depend on rank and title."""
    header = {key: value for key, value in file.metadata.items() if key != "lora_adapter_metadata"}  # its alphas are folded in
    if "ss_network_dim" in header:
        header |= network_keys(lora, alpha)
    for key in ("ss_output_name", "modelspec.title"):
        if key in header:
            header[key] = title
    header |= {f"{name}:rank": str(pair.rank) for name, pair in lora.items() if f"{name}:rank" in header}  # cloneofsimo's
    return header
