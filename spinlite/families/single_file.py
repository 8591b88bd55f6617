"""One .safetensors file in the original (LDM, SGM) layout, as model sites offer it. Reading it needs no network."""

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import (
    KINDS,
    PREDICTIONS,
    Checkpoint,
    Kind,
    class_of,
    explain_errors,
    require_file,
    require_sound,
    require_whole,
)
from spinlite.families.clip import build_tokenizer
from spinlite.families.keys import ENCODERS, NET, check_network, scaled, unread_keys
from spinlite.families.kinds import FIX_UNSUPPORTED
from spinlite.families.others import describe_file, describe_inputs
from spinlite.runs.files import fingerprint_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import CLIPTokenizer

PADDED_BY_ZERO = {("sd2", "tokenizer"), ("sdxl", "tokenizer_2")}  # OpenCLIP's; OpenAI's CLIP is padded with its end token
ARCHITECTURES: dict[str, Kind] = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl-v1": "sdxl",
}  # by the beginnings of ModelSpec's names
YAML = re.compile(r"""^\s*parameterization\s*:\s*["']?(v|eps)\b""", re.MULTILINE)
EDM = ("edm_mean", "edm_vpred.sigma_max")  # keys that mark Playground 2.5 and CosXL


class SingleFile(Checkpoint):
    """A whole model in one file. Its header is read when it is opened, its weights part by part later."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        require_file(path)
        self._shapes, self._metadata = read_header(path)
        self.kind = self._read_kind()
        check_network(self.name, self._shapes, self.kind)
        self.unread = unread_keys(self._shapes)
        self.predictions = self._read_predictions()
        marked = "ztsnr" in self._shapes or self._metadata.get("ss_zero_terminal_snr", "").lower() == "true"
        self.zero_snr = True if marked else None

    def config(self, part: str) -> dict[str, Any]:
        config = KINDS[self.kind].config(part)
        if self.kind == "sd2" and part == "unet" and set(self.predictions.values()) == {"eps"}:
            config["sample_size"] = config["sample_size"] * 2 // 3  # the 512 px model; v-prediction is the 768 px one
        return config

    def load(self, part: str, dtype: "torch.dtype") -> Any:
        if part.startswith("tokenizer"):
            return load_padded_tokenizer(self.kind, part)
        tensors = self._tensors(part, dtype)
        kind, config = class_of(KINDS[self.kind].parts, part), str(KINDS[self.kind].folder)
        if part in ("unet", "vae"):
            options: dict[str, Any] = {"config": config, "subfolder": part, "local_files_only": True, "dtype": dtype}
            model = explain_errors(self.name, lambda: kind.from_single_file(tensors, **options))
        else:
            from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

            options = {"config": config, "subfolder": part, "local_files_only": True, "torch_dtype": dtype}
            model = explain_errors(self.name, lambda: create_diffusers_clip_model_from_ldm(kind, tensors, **options))
        return require_sound(self.name, part, require_whole(self.name, part, model))

    def fingerprint(self, *parts: str) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_files([self._path])

    def _tensors(self, part: str, dtype: "torch.dtype") -> "dict[str, Tensor]":
        others = {"unet": NET, "vae": ("first_stage_model.", "vae.")}
        prefixes = others[part] if part in others else ENCODERS[self.kind][part]
        with safe_open(self._path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in self._shapes if key.startswith(prefixes)}
        if not tensors:
            other_way = "set model.vae to a VAE, or " if part == "vae" else ""
            raise SpinliteError(f"{self.name} has no {part}", fix=f"{other_way}use a version that is not pruned")
        return scaled(tensors, dtype)

    def _read_kind(self) -> Kind:
        shapes = self._shapes
        first = shapes.get(f"{NET}input_blocks.0.0.weight", ())
        if any(key in shapes for key in EDM):
            raise SpinliteError(f"{self.name} is an EDM model, which has a noise schedule of its own", fix=FIX_UNSUPPORTED)
        pooled = f"{NET}label_emb.0.0.weight" in shapes
        kinds: list[Kind] = [
            kind for kind, parts in ENCODERS.items()
            if pooled == (kind == "sdxl") and all(any(key.startswith(start) for key in shapes) for start in parts.values())
        ]  # fmt: skip
        if len(first) != 4 or len(kinds) != 1 or first[1] != 4:
            why = describe_inputs(first[1]) if len(first) == 4 and first[1] != 4 else describe_file(shapes)
            motion = f"name an SD 1.5 as the base, and add --set model.motion={self._path.as_posix()}"
            raise SpinliteError(f"{self.name} {why}", fix=motion if "(AnimateDiff)" in why else FIX_UNSUPPORTED)
        label = self._metadata.get("modelspec.architecture", "")
        if any(label.startswith(start) and kind != kinds[0] for start, kind in ARCHITECTURES.items()):
            raise SpinliteError(
                f"{self.name} calls itself {label} (modelspec.architecture), but its weights are {KINDS[kinds[0]].title}",
                fix="correct that label, or use another copy of the model",
            )
        return kinds[0]

    def _read_predictions(self) -> dict[str, Any]:
        found = {"its key v_pred": "v"} if "v_pred" in self._shapes else {}
        label = self._metadata.get("modelspec.prediction_type", "").lower()
        if label in PREDICTIONS:
            found["modelspec.prediction_type"] = PREDICTIONS[label]
        trained = self._metadata.get("ss_v_parameterization", "").lower()
        if trained in ("true", "false"):
            found["ss_v_parameterization"] = "v" if trained == "true" else "eps"
        beside = self._path.with_suffix(".yaml")  # as WebUIs keep it
        stated = YAML.search(beside.read_text(encoding="utf-8", errors="replace")) if beside.is_file() else None
        if stated:
            found[beside.name] = PREDICTIONS[stated[1]]
        size = re.match(r"stable-diffusion-v2-(512|768-v)", self._metadata.get("modelspec.architecture", ""))
        if size:
            found["modelspec.architecture"] = "v" if size[1] == "768-v" else "eps"
        return found


def load_padded_tokenizer(kind: Kind, part: str) -> "CLIPTokenizer":
    """The "tokenizer" or "tokenizer_2" of a kind, with the padding that its text encoder was trained with."""
    tokenizer = build_tokenizer()
    if (kind, part) in PADDED_BY_ZERO:
        tokenizer.pad_token = "!"  # set afterwards, so that "!" in a caption keeps its own token
    return tokenizer


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(shapes by key, metadata) of a safetensors file, without its weights. Raises SpinliteError if it can't be read."""
    try:
        with safe_open(path, "np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SpinliteError(f"{path.name} is not a whole safetensors file: {error}", fix="download it again") from None


def has_published_size(checkpoint: Checkpoint) -> bool:
    """Whether a model's UNet has the levels of the published one: programs open every single file by these."""
    config, published = checkpoint.config("unet"), KINDS[checkpoint.kind].config("unet")
    names = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "cross_attention_dim")
    return all(config.get(name) == published[name] for name in names)


def part_of(key: str) -> str:
    """Which part of the model a tensor in the original layout belongs to, in words."""
    if key.startswith(NET):
        return "UNet"
    if key.startswith(("first_stage_model.", "vae.")):
        return "VAE"
    if key.startswith("model_ema."):
        return "EMA"
    if key.startswith(("cond_stage_model.", "conditioner.embedders.0.")):
        return "text encoder"
    return "text encoder 2" if key.startswith("conditioner.embedders.1.") else "other"
