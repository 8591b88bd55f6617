"""A LoRA -> a file, and the proof that the file holds it."""

import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from spinlite.export.verify import Verified, verify
from spinlite.families.family import Family
from spinlite.lora.layouts import Layout, complete, diffusers, kohya
from spinlite.lora.metadata import THUMBNAIL, About, header
from spinlite.lora.tensors import Lora
from spinlite.runs.store import replace


def write_lora(path: Path, lora: Lora, family: Family, about: About, layout: Layout, dtype: torch.dtype) -> Verified:
    """Write a LoRA in a layout and precision, open it again and compare. Raises SpinliteError where it is not what it was."""
    if layout == "kohya":
        lora = complete(lora)
        keys = {name: family.export_name(name) for name in lora}
        tensors, alpha = kohya(lora, keys.__getitem__, dtype)
    else:
        keys = {name: name for name in lora}
        tensors, alpha = diffusers(lora, dtype), max(pair.rank for pair in lora.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, save(tensors, header(tensors, lora, alpha, about)))
    return verify(path, lora, family, keys)


def write_sidecars(path: Path, about: About) -> None:
    """What WebUIs of A1111's kind show beside a LoRA: `NAME.json` and the thumbnail as `NAME.png`."""
    kind, _, version = about.family.get("ss_base_model_version", "Unknown").partition("_")  # sd_v1 is shown as SD1
    said = {
        "description": about.description,
        "sd version": kind.upper() + version[1:2] if kind == "sd" else kind.upper(),
        "activation text": "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"made for {about.base}",
    }
    replace(path.with_suffix(".json"), json.dumps(said, ensure_ascii=False, indent=2).encode())
    if about.thumbnail:
        buffer = io.BytesIO()
        about.thumbnail.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "PNG")
        replace(path.with_suffix(".png"), buffer.getvalue())
