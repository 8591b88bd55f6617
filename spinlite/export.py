"""Snapshot -> a LoRA file that other programs open: kohya's layout, one alpha for the whole file, fp16."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from spinlite.adapters import delta, modules
from spinlite.errors import SpinliteError
from spinlite.families import Family
from spinlite.store import read, replace

WORST = 5e-3  # largest relative error of a module's weight change that fp16 may cost


def export(family: Family, state: Mapping[str, Tensor], scale: float, path: Path, about: Mapping[str, str]) -> str:
    """Write the LoRA and check it as another program would read it; returns what was verified, in words.

    A module's weight change is alpha / rank x up down. One power of two is taken as alpha / rank for all of them, such
    that the largest `up` lies near 1: self-play changes are small, and fp16 would lose them. `about` goes into the
    header. Raises SpinliteError where the file does not hold what was trained.
    """
    if any("magnitude" in name for name in state):
        raise SpinliteError("a DoRA can't be exported: programs read it in ways that differ", fix="set model.dora = false")
    names = {module: family.export_name(module) for module in modules(dict(state))}
    largest = max(state[f"{module}.lora_B.weight"].abs().max().item() for module in names) * scale
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    tensors: dict[str, Tensor] = {}
    for module, name in names.items():
        down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        tensors[f"{name}.lora_down.weight"] = down.half().contiguous()
        tensors[f"{name}.lora_up.weight"] = (up * (scale / unit)).half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(unit * down.shape[0], dtype=torch.float16)
    rank = next(iter(state.values())).shape[0]
    metadata = {
        **family.export_metadata(),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(unit * rank),
        "ss_output_name": path.stem,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": path.stem,
        "spinlite": json.dumps(dict(about), sort_keys=True),
    }
    content = save(tensors, metadata)
    header = int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[8 + header :]).hexdigest()  # of the data section, which no header changes
    metadata |= {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, save(tensors, metadata))
    return _verify(path, state, scale, names)


def _verify(path: Path, state: Mapping[str, Tensor], scale: float, names: Mapping[str, str]) -> str:
    written, _ = read(path)
    worst = 0.0
    for module, name in names.items():
        down, up = written[f"{name}.lora_down.weight"].float(), written[f"{name}.lora_up.weight"].float()
        factor = written[f"{name}.alpha"].item() / down.shape[0]
        trained = delta(dict(state), module, scale)
        got = factor * (up.flatten(1) @ down.flatten(1)).view_as(trained)
        worst = max(worst, ((got - trained).norm() / trained.norm().clamp_min(1e-12)).item())
    if worst > WORST:
        raise SpinliteError(f"{path} does not hold what was trained (off by {worst:.1%})", fix="report this as a bug")
    return f"{len(names)} of {len(names)} modules, largest relative error {worst:.0e}"
