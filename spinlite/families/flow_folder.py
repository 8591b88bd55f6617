"""A flow model in diffusers' layout: a folder, or a repository on the hub. Only safetensors are ever opened."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from spinlite.families.checkpoint import (
    Checkpoint,
    class_of,
    explain_errors,
    load_pretrained,
    refuse_distilled,
    require_sound,
    require_whole,
)
from spinlite.families.folder_check import check_files, check_index, is_index
from spinlite.families.hub import cached_folder, list_files
from spinlite.families.kinds import KINDS, flow_kind
from spinlite.runs.files import fingerprint, fingerprint_files


class FlowFolder(Checkpoint):
    """A folder with a transformer in diffusers' layout, or such a repository. It is checked when it is opened."""

    predictions, zero_snr = {}, None

    def __init__(self, name: str, place: str, net: str, on_hub: bool = False) -> None:
        """`place` is a folder, or with `on_hub` a hub id; `net` is its part that learns.

        Raises SpinliteError if it can't be reached or used.
        """
        self.name, self._place, self._on_hub = name, place, on_hub
        if on_hub and list_files(place) is None:
            self._place, self._on_hub = str(cached_folder(place)), False
        self._named = on_hub  # files of the hub's cache have other names on every computer
        self.kind = flow_kind(name, self._read(net, "config.json"))
        if not self._on_hub:
            check_files(name, Path(place if not on_hub else self._place), tuple(KINDS[self.kind].parts))
        self._refuse_distilled()

    def config(self, part: str) -> dict[str, Any]:
        return self._read(part, "scheduler_config.json" if part == "scheduler" else "config.json")

    def load(self, part: str, dtype: torch.dtype) -> Any:
        made = class_of(KINDS[self.kind].parts, part)
        if "tokenizer" in part:
            return explain_errors(self.name, lambda: made.from_pretrained(self._place, subfolder=part))
        for index in (list_files(self._place) or ()) if self._on_hub else ():
            if index.startswith(f"{part}/") and is_index(index):
                check_index(self.name, Path(hf_hub_download(self._place, index)), beside=False)
        model = explain_errors(self.name, lambda: load_pretrained(made, self._place, dtype, part))
        return require_sound(self.name, part, require_whole(self.name, part, model))

    def fingerprint(self, *parts: str) -> str:
        folder = Path(self._place)
        files = sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*/*.json"))
        files = [path for path in files if not parts or path.parent.name.startswith(parts)]
        return fingerprint_files(files) if files and not self._named else fingerprint(self.name)

    def _read(self, part: str, name: str) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            path = f"{part}/{name}" if part else name
            where = hf_hub_download(self._place, path) if self._on_hub else Path(self._place) / path
            return json.loads(Path(where).read_text(encoding="utf-8"))

        return explain_errors(self.name, read)

    def _refuse_distilled(self) -> None:
        """Raises SpinliteError if the pipeline's own settings, or the model's, call it distilled."""
        index = "model_index.json"  # modular pipelines have none
        there = index in (list_files(self._place) or ()) if self._on_hub else (Path(self._place) / index).is_file()
        if there and self._read("", index).get("is_distilled"):
            refuse_distilled(self, f"as its {index} says")
        refuse_distilled(self)
