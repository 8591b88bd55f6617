"""Finds the weights of scorers: the user's own file, or the hub's cache. This is the one place that opens a pickle.

Everything else in spinlite opens safetensors alone. Three published scorers come as PyTorch files (.pt, .pth). Such a file is
opened only if its SHA-256 is one of PINNED, which is checked before, and with `weights_only`, which runs no code of a pickle.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.memory.device import Device
from spinlite.runs.files import fingerprint, fingerprint_files

PINNED = {  # SHA-256 -> the published file
    "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837": "HPS_v2.1_compressed.pt",
    "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1": "HPS_v2_compressed.pt",
    "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6": "ImageReward.pt",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": "sac+logos+ava1-l14-linearMSE.pth",
}


@dataclass(frozen=True)
class Place:
    """A file on the hub; `size` in GB, for messages."""

    repo: str
    file: str
    size: float


@dataclass(frozen=True)
class Weights:
    """Where scorers find their weights, and the device that they compute on."""

    device: Device
    given: Mapping[str, Path] = field(default_factory=dict)  # name of a network or head -> the user's own file
    tell: Callable[[str], None] = lambda text: None  # called before a download

    def identity(self, name: str) -> str:
        """16 hex digits that change with the user's own file, and with the precision that it is computed in."""
        own = [path for part, path in self.given.items() if part == name and path.is_file()]
        return fingerprint(fingerprint_files(own) if own else "hub", str(self.precision))

    @property
    def precision(self) -> torch.dtype:
        """fp16 on a card, as scorers are used; fp32 elsewhere."""
        return torch.float16 if self.device.device.type == "cuda" else torch.float32

    def find(self, name: str, places: Sequence[Place]) -> Path:
        """The file for `name`: the user's own, or the first of `places` that the hub or its cache has.

        Raises SpinliteError if there is none.
        """
        if own := self.given.get(name):
            if not own.is_file():
                raise SpinliteError(f"{own}, the weights for {name}, is not there", fix=f"check --weights {name}=FILE")
            return own
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        said = ""
        for place in places:
            if not isinstance(try_to_load_from_cache(place.repo, place.file), str):
                self.tell(f"{name}: looking for {place.file} ({place.size:g} GB) on the hub, in {place.repo}")
            try:
                return Path(hf_hub_download(place.repo, place.file))
            except Exception as error:  # of whichever library is used for connections
                said = said or f"{place.repo}: {' '.join(str(error).split())[:160]}"
        first = places[0]
        fix = f"check the network, or download {first.file} ({first.size:g} GB) from {first.repo} and add --weights {name}=FILE"
        raise SpinliteError(f"there are no weights for {name} ({said})", fix=fix)


def read(path: Path, wanted: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file of weights, or those of them that begin with one of `wanted`.

    Raises SpinliteError if it is neither a safetensors file nor one of PINNED.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if not wanted or name.startswith(tuple(wanted))]  # noqa: SIM118
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise SpinliteError(f"{path} is damaged: {error}", fix="download it again") from None
    tensors = _unpickle(path)
    return {name: tensor for name, tensor in tensors.items() if not wanted or name.startswith(tuple(wanted))}


def _unpickle(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found not in PINNED:
            known = ", ".join(PINNED.values())
            problem = f"{path} is not opened: its SHA-256, {found[:16]}…, is none of the published files ({known})"
            raise SpinliteError(problem, fix="download it again, or give the same weights as a .safetensors file")
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    return content.get("state_dict", content)
