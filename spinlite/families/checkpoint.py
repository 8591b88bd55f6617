"""Where a base model comes from: a diffusers folder, a hub id, or one file; and what it says of itself."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ConfigMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from spinlite.config import PACKAGE
from spinlite.errors import SpinliteError
from spinlite.store import fingerprint, fingerprint_files

Kind = Literal["sd1", "sd2", "sdxl"]
Said = Mapping[str, Literal["eps", "v"]]  # where it is said -> what the network predicts

KINDS: dict[Kind, str] = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v_prediction": "v", "v": "v"}
WHOLE = "download it again, or use a version that is not pruned"
OTHER = "use a Stable Diffusion 1.x, 2.x or SDXL text-to-image model"
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModel,
    "tokenizer_2": CLIPTokenizer,
    "text_encoder_2": CLIPTextModelWithProjection,
}


class Checkpoint(ABC):
    """A base model that has not been loaded yet. Parts are named as diffusers names them."""

    name: str  # for people
    kind: Kind
    predictions: Said
    zero_snr: bool | None  # whether its noise schedule ends in pure noise; None where it does not say

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The settings of a part, or of the "scheduler"."""

    @abstractmethod
    def load(self, part: str, dtype: torch.dtype) -> Any:
        """A part with its weights, on the CPU. Raises SpinliteError where it can't be read or is not whole."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the weights."""


def open_checkpoint(base: str) -> Checkpoint:
    """A base model by its path or hub id; "demo" is the one in the package. Raises SpinliteError where it can't be used."""
    from spinlite.families.single_file import SingleFile

    path = PACKAGE / "demo" / "base" if base == "demo" else Path(base)
    refuse_pickle(path)
    if path.suffix.lower() == ".safetensors":
        return SingleFile(path)
    return Folder(base, str(path))


def refuse_pickle(path: Path) -> None:
    """Raises SpinliteError for files that run a program when they are opened."""
    if path.suffix.lower() in PICKLES:
        raise SpinliteError(
            f"{path.name} is a pickle: opening it can run any program that is hidden in it",
            fix="use the .safetensors version of the model, or convert it to one (a WebUI's checkpoint merger can)",
        )


def guard(name: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; what goes wrong in it, as an error to read."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")  # diffusers asks the hub's client for it
            return call()
    except NotImplementedError:  # a weight that is not there stays on the meta device, from where nothing can be copied
        raise SpinliteError(f"{name} is not whole: weights are missing", fix=WHOLE) from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SpinliteError(
            f"can't read the base model {name!r}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            fix="set model.base to a diffusers folder with safetensors weights, a hub id that this computer can reach, "
            "or a whole .safetensors file",
        ) from None


def whole(name: str, part: str, model: nn.Module) -> nn.Module:
    """The model, if every weight of it was there. Raises SpinliteError otherwise."""
    missing = [key for key, p in model.named_parameters() if p.is_meta]
    if missing:
        problem = f"{name} is not whole: {len(missing)} weights of its {part} are missing, e.g. {missing[0]}"
        raise SpinliteError(problem, fix=WHOLE)
    return model


class Folder(Checkpoint):
    """A folder in diffusers' layout, or a repository of that layout on the hub."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self._place = name, place
        unet = self.config("unet")
        self.kind = self._kind(unet)
        noise = self.config("scheduler")
        said = noise.get("prediction_type")
        if said is not None and said not in PREDICTIONS:
            raise SpinliteError(f"{name} predicts {said!r}", fix="use a model that predicts epsilon or v_prediction")
        self.predictions = {"scheduler_config.json": PREDICTIONS[said]} if said else {}  # pyright: ignore[reportAttributeAccessIssue]
        self.zero_snr = noise.get("rescale_betas_zero_snr") or None  # exporters write false where nobody said so

    def config(self, part: str) -> dict[str, Any]:
        if part == "scheduler":
            kind: Any = type("Noise", (ConfigMixin,), {"config_name": "scheduler_config.json"})
        else:
            kind = CLASSES[part]
        return dict(guard(self.name, lambda: kind.load_config(self._place, subfolder=part)))

    def load(self, part: str, dtype: torch.dtype) -> Any:
        options: dict[str, Any] = {"subfolder": part}
        if not part.startswith("tokenizer"):
            options |= {"use_safetensors": True, "dtype": dtype}
        return guard(self.name, lambda: CLASSES[part].from_pretrained(self._place, **options))

    def fingerprint(self) -> str:
        folder = Path(self._place)
        files = sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*/*.json"))
        return fingerprint_files(files) if files else fingerprint(self._place)

    def _kind(self, unet: Mapping[str, Any]) -> Kind:
        if unet["in_channels"] != 4 or unet.get("class_embed_type") or unet.get("encoder_hid_dim"):
            raise SpinliteError(f"{self.name} is not a text-to-image model (inpainting, or the like)", fix=OTHER)
        if unet.get("addition_embed_type") == "text_time":
            return "sdxl"
        return "sd2" if unet.get("use_linear_projection") else "sd1"
