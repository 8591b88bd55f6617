"""Writes a LoRA to a file, and checks the file."""

import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.export.verify import Verified, verify
from spinlite.families.family import Family
from spinlite.lora.layouts import Layout, complete_attention, to_diffusers, to_kohya
from spinlite.lora.metadata import THUMBNAIL, HeaderInfo, build_header
from spinlite.lora.tensors import Lora
from spinlite.runs.disk import write_bytes


def write_lora(path: Path, lora: Lora, family: Family, about: HeaderInfo, layout: Layout, dtype: torch.dtype) -> Verified:
    """Write a LoRA in a layout and precision, then read it back and compare. Raises SpinliteError if they differ."""
    if layout == "kohya":
        lora = complete_attention(lora)
    tensors, alpha = lay_out(lora, family, layout, dtype)
    keys = {name: family.export_name(name, layout) for name in lora}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, build_header(tensors, lora, alpha, about)))
    return verify(path, lora, family, keys)


def lay_out(lora: Lora, family: Family, layout: Layout, dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """(the tensors of a file in this layout, the alpha that its header states)."""

    def key_of(name: str) -> str:
        return family.export_name(name, layout)

    if layout == "kohya":
        return to_kohya(complete_attention(lora), key_of, dtype)
    return to_diffusers(lora, dtype, key_of, layout), max(pair.rank for pair in lora.values())


def choose_layout(family: Family, wanted: Layout | None) -> Layout:
    """The layout that is wanted, or the family's first. Raises SpinliteError if the family has no such layout."""
    if wanted and wanted not in family.layouts:
        problem = f"a LoRA for {family.title} is not written in the {wanted} layout: no program would load it"
        raise SpinliteError(problem, fix="leave out --format")
    return wanted or family.layouts[0]


def write_sidecars(path: Path, about: HeaderInfo) -> None:
    """Write the files that A1111 and similar WebUIs show with a LoRA: `NAME.json`, and the thumbnail as `NAME.png`."""
    kind, _, version = about.family.get("ss_base_model_version", "Unknown").partition("_")  # sd_v1 is shown as SD1
    card = {
        "description": about.description,
        "sd version": kind.upper() + version[1:2] if kind == "sd" else kind.upper(),
        "activation text": "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"made for {about.base}",
    }
    write_bytes(path.with_suffix(".json"), json.dumps(card, ensure_ascii=False, indent=2).encode())
    if about.thumbnail:
        buffer = io.BytesIO()
        about.thumbnail.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "PNG")
        write_bytes(path.with_suffix(".png"), buffer.getvalue())
