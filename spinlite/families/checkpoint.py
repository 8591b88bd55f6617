"""A base model that is not loaded yet: a diffusers folder, a hub id or one file, and what its files say about it."""

import importlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spinlite.errors import SpinliteError
from spinlite.families.kinds import KINDS as KINDS
from spinlite.families.picture import ClipRule
from spinlite.families.record import Kind as Kind

if TYPE_CHECKING:  # whoever only looks at a model needs no torch
    import torch
    from torch import nn

Predictions = Mapping[str, Literal["eps", "v"]]  # the label that says so -> what the network predicts

PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v_prediction": "v", "v": "v"}
FIX_INCOMPLETE = "download it again, or use a version that is not pruned"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def class_of(parts: Mapping[str, str], part: str) -> Any:
    """The class of diffusers or transformers that a part is loaded with; `parts` are a record's."""
    library, _, name = parts[part].partition(".")
    return getattr(importlib.import_module(library), name)


def refuse_distilled(checkpoint: "Checkpoint", said_by: str = "") -> None:
    """Raises SpinliteError if something says that a flow model is distilled: `said_by`, or else its name or settings."""
    record = KINDS[checkpoint.kind]
    if not said_by and record.distilled:
        said_by = record.distilled(Path(checkpoint.name).name, checkpoint.config)
    if said_by:
        what = f"{checkpoint.name} is distilled, {said_by}: it makes pictures in a few steps, and training would undo that"
        raise SpinliteError(what, fix=f"add --set model.base={record.hub[0]}; the LoRA works on both")


class Checkpoint(ABC):
    """A base model that is not loaded yet. Parts have diffusers' names: "unet", "vae", "text_encoder", "tokenizer"."""

    name: str  # for messages
    kind: Kind
    predictions: Predictions
    zero_snr: bool | None  # whether its noise schedule ends in pure noise; None if nothing says so
    unread: Sequence[str] = ()  # tensors in its file that nothing reads

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The settings of a part, or of the "scheduler"."""

    @abstractmethod
    def load(self, part: str, dtype: "torch.dtype") -> Any:
        """A part with its weights, on the CPU. Raises SpinliteError if it can't be read or is incomplete."""

    @abstractmethod
    def fingerprint(self, *parts: str) -> str:
        """A hash of the weights; with `parts`, of at least the parts that have names with these beginnings."""

    @property
    def clips(self) -> ClipRule | None:
        """Which clips it makes; None: pictures alone."""
        return KINDS[self.kind].clips

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return KINDS[self.kind].geometry.factor(self.config)

    def size_and_step(self, resolution: int | None = None) -> tuple[tuple[int, int], int]:
        """((width, height) of the model's pictures, step), px: sides of other pictures are multiples of `step`.

        VAE and network can halve a multiple of the step without remainder. It is at least a 16th of the model's own side, so
        that there are not more shapes than pictures. For SDXL it is 64, as in its paper. `resolution` replaces the model's own
        size. Raises SpinliteError if that is no multiple of the step.
        """
        geometry = KINDS[self.kind].geometry
        own, halved = geometry.side(self.config), geometry.halved(self.config)
        step = halved * max(1, round(own / 16 / halved))
        if resolution and resolution % step:
            near = max(step, round(resolution / step) * step)
            problem = f"model.resolution = {resolution} is not a multiple of {step}, as {self.name} needs"
            raise SpinliteError(problem, fix=f"type --resolution {near}")
        side = resolution or own
        return (side, side), step


def locate(name: str, setting: str) -> str:
    """The path of a folder or .safetensors file with `~` expanded, or a hub id. Raises SpinliteError for anything else.

    A name that looks like a path is never looked up on the hub: a typo would come back as a puzzling error.
    """
    path = Path(name).expanduser()
    refuse_pickle(path)
    if path.suffix.lower() == ".safetensors" or path.is_dir():
        return str(path)
    if path.is_file():
        raise SpinliteError(f"{name} is neither a .safetensors file nor a folder", fix=f"check {setting}")
    if not HUB_ID.fullmatch(name) or path.parent.is_dir():
        raise SpinliteError(f"there is no folder or file {name}", fix=f"check {setting}; a hub id looks like owner/name")
    return name


def require_file(path: Path) -> None:
    """Raises SpinliteError if there is no plain file at the path of a single-file base."""
    if not path.is_file():
        what = f"{path} is not a plain file" if path.exists() else f"there is no file {path}"
        raise SpinliteError(what, fix="check model.base, or name the file you have: --set model.base=FILE.safetensors")


def refuse_pickle(path: Path) -> None:
    """Raises SpinliteError for pickle files, which can run a program when they are opened."""
    if path.suffix.lower() in PICKLES:
        raise SpinliteError(
            f"{path.name} is a pickle file: opening it can run any program hidden inside",
            fix="use the .safetensors version of the model, or convert it (the checkpoint merger of a WebUI can)",
        )


def explain_errors(name: str, call: Callable[[], Any]) -> Any:
    """Return what `call` returns. Raises SpinliteError, in plain words, for the errors of the libraries it uses."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")  # diffusers passes that argument on
            return call()
    except NotImplementedError:  # a missing weight stays on the meta device, and nothing can be copied from there
        raise SpinliteError(f"{name} is incomplete: weights are missing", fix=FIX_INCOMPLETE) from None
    except SpinliteError:
        raise
    except Exception as error:  # of three libraries, which have many kinds
        raise SpinliteError(
            f"can't read the base model {name!r}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            fix="set model.base to a diffusers folder with safetensors weights, a hub id that this computer can reach, "
            "or a complete .safetensors file",
        ) from None


def require_whole(name: str, part: str, model: "nn.Module") -> "nn.Module":
    """Return the model if it has all its weights. Raises SpinliteError otherwise."""
    missing = [key for key, p in model.named_parameters() if p.is_meta]
    if missing:
        problem = f"{name} is incomplete: {len(missing)} weights of its {part} are missing, e.g. {missing[0]}"
        raise SpinliteError(problem, fix=FIX_INCOMPLETE)
    return model


def require_sound(name: str, part: str, model: "nn.Module") -> "nn.Module":
    """Return the model if all its weights are finite. Raises SpinliteError otherwise: nothing good can come of it."""
    broken = [key for key, weight in model.state_dict().items() if weight.is_floating_point() and not weight.isfinite().all()]
    if broken:
        problem = f"{name} is broken: {len(broken)} weights of its {part} hold NaN or infinite numbers, e.g. {broken[0]}"
        other_way = "set model.vae to another VAE of this kind, or " if part == "vae" else ""
        raise SpinliteError(problem, fix=f"{other_way}use another copy of the base model")
    return model


def load_pretrained(kind: Any, place: str, dtype: "torch.dtype", subfolder: str = "") -> Any:
    """A model of class `kind` from a folder or the hub; the fp16 files if there are no others. Only safetensors are read."""
    options: dict[str, Any] = {"subfolder": subfolder, "use_safetensors": True, "dtype": dtype}
    folder = Path(place) / subfolder
    if folder.is_dir():
        names = [path.name for path in folder.glob("*.safetensors")]
        halved = bool(names) and all(".fp16." in name or ".fp16-" in name for name in names)
        return kind.from_pretrained(place, variant="fp16" if halved else None, **options)
    try:
        return kind.from_pretrained(place, **options)
    except OSError as error:
        try:
            return kind.from_pretrained(place, variant="fp16", **options)
        except OSError:
            raise error from None
