"""A base model in diffusers' layout: a folder, or a repository on the hub. Only safetensors are ever opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from huggingface_hub import hf_hub_download

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import (
    PREDICTIONS,
    Checkpoint,
    Kind,
    class_of,
    explain_errors,
    load_pretrained,
    require_sound,
    require_whole,
)
from spinlite.families.folder_check import check_config, check_files, check_index, check_tokens, is_index
from spinlite.families.hub import cached_folder, list_files
from spinlite.families.kinds import FIX_UNSUPPORTED
from spinlite.families.others import describe_inputs
from spinlite.families.unet_kinds import XL_PARTS
from spinlite.runs.files import fingerprint, fingerprint_files

FILES = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")
XL_FILES = ("tokenizer_2", "text_encoder_2")


class Folder(Checkpoint):
    """A folder in diffusers' layout, or a repository with that layout on the hub. It is checked when it is opened."""

    def __init__(self, name: str, place: str, on_hub: bool = False) -> None:
        """`place` is a folder, or with `on_hub` a hub id. Raises SpinliteError if it can't be reached or used."""
        self.name, self._place, self._on_hub = name, place, on_hub
        self._checked: dict[str, dict[str, Any]] = {}
        self._listed = list_files(place) if on_hub else None  # None: it is read from a folder here
        if on_hub and self._listed is None:
            self._place = str(cached_folder(place))
        if self._listed is None:
            check_files(name, Path(self._place), FILES)
        unet = self.config("unet")
        self.kind = self._read_kind(unet)
        if self.kind == "sdxl" and self._listed is None:
            check_files(name, Path(self._place), XL_FILES)
        noise = self.config("scheduler")
        label = noise.get("prediction_type")
        if label is not None and label not in PREDICTIONS:
            problem = f"{name} predicts {label!r}, which spinlite can't train"
            raise SpinliteError(problem, fix="use a model that predicts epsilon or v_prediction")
        self.predictions = {"scheduler_config.json": PREDICTIONS[label]} if label else {}  # pyright: ignore[reportAttributeAccessIssue]
        self.zero_snr = noise.get("rescale_betas_zero_snr") or None  # exporters write false by default, so false says nothing
        for part in ("vae", "text_encoder", *XL_FILES[1:] * (self.kind == "sdxl")):
            self.config(part)
        if self._listed is None:
            check_tokens(name, Path(self._place), self.config("text_encoder")["max_position_embeddings"])

    def config(self, part: str) -> dict[str, Any]:
        if part not in self._checked:
            self._checked[part] = check_config(self.name, part, self._read_config(part))
        return dict(self._checked[part])

    def load(self, part: str, dtype: torch.dtype) -> Any:
        if part.startswith("tokenizer"):
            return explain_errors(self.name, lambda: class_of(XL_PARTS, part).from_pretrained(self._place, subfolder=part))
        for index in self._listed or ():
            if index.startswith(f"{part}/") and is_index(index):
                check_index(self.name, Path(hf_hub_download(self._place, index)), beside=False)
        model = explain_errors(self.name, lambda: load_pretrained(class_of(XL_PARTS, part), self._place, dtype, part))
        return require_sound(self.name, part, require_whole(self.name, part, model))

    def fingerprint(self, *parts: str) -> str:
        folder = Path(self._place)
        files = sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*/*.json"))
        files = [path for path in files if not parts or path.parent.name.startswith(parts)]
        return fingerprint_files(files) if files and not self._on_hub else fingerprint(self.name)

    def _read_config(self, part: str) -> dict[str, Any]:
        if part == "scheduler":
            kind: Any = type("Noise", (ConfigMixin,), {"config_name": "scheduler_config.json"})
        elif part.startswith("text_encoder"):
            read: Any = class_of(XL_PARTS, part).config_class.from_pretrained
            return explain_errors(self.name, lambda: read(self._place, subfolder=part).to_dict())
        else:
            kind = class_of(XL_PARTS, part)
        return explain_errors(self.name, lambda: dict(kind.load_config(self._place, subfolder=part)))

    def _read_kind(self, unet: Mapping[str, Any]) -> Kind:
        if unet["in_channels"] != 4:
            raise SpinliteError(f"{self.name} {describe_inputs(unet['in_channels'])}", fix=FIX_UNSUPPORTED)
        if unet.get("class_embed_type") or unet.get("encoder_hid_dim"):
            raise SpinliteError(f"{self.name} is not a plain text-to-image model", fix=FIX_UNSUPPORTED)
        if unet.get("addition_embed_type") == "text_time":
            if unet["cross_attention_dim"] == 1280:
                raise SpinliteError(f"{self.name} is the SDXL refiner, which only finishes pictures", fix=FIX_UNSUPPORTED)
            return "sdxl"
        return "sd2" if unet.get("use_linear_projection") else "sd1"
