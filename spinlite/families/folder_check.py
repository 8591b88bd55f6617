"""Checks of a folder in diffusers' layout before anything in it is loaded: are its files what programs take them for?"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.families.kinds import FIX_UNSUPPORTED

FIX = "download the model again, or use another copy"
NEEDED = {"scheduler": "scheduler_config.json"}  # a part's own file; of the others config.json, of tokenizers none
READ = (".json", ".txt", ".safetensors")  # endings of files that are opened
LARGEST = 2**14  # of a size in a config: no published model comes near it


def check_files(name: str, folder: Path, parts: Sequence[str]) -> None:
    """Raises SpinliteError if a part is missing, or holds something that is no plain file or an index that leads elsewhere."""
    if parts[0] == "unet" and not (folder / "unet").is_dir():
        raise SpinliteError(f"{name} {_describe_folder(folder)}", fix=_fix_folder(folder))
    for part in parts:
        place = folder / part
        if not place.is_dir():
            raise SpinliteError(f"{name} has no {part}: there is no folder {part}/ in it", fix=FIX)
        for path in place.iterdir():
            if path.suffix.lower() in READ and not path.is_file():
                raise SpinliteError(f"{name}: {part}/{path.name} is not a plain file", fix=FIX)
        needed = NEEDED.get(part, "" if "tokenizer" in part else "config.json")
        if not (place / needed).exists():
            raise SpinliteError(f"{name} has no {part}/{needed}", fix=FIX)
        if needed == "config.json" and not any(place.glob("*.safetensors")):
            kept = " (others, such as .bin, are never opened)" if any(place.glob("*.bin")) else ""
            raise SpinliteError(f"{name} has no weights of its {part} as .safetensors{kept}", fix=FIX)
        for index in filter(is_index, map(str, sorted(place.iterdir()))):
            check_index(name, Path(index))


def is_index(path: str) -> bool:
    """Whether a file says which shard holds which weight."""
    return path.endswith(".json") and ".safetensors." in path


def check_index(name: str, index: Path, beside: bool = True) -> None:
    """Raises SpinliteError if an index of shards names anything but .safetensors files in its own folder.

    With `beside` they must be there. diffusers would open what it names, wherever it is and whatever it is.
    """
    where = f"{name}: {index.parent.name}/{index.name}"
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SpinliteError(f"{where} can't be read", fix=FIX) from None
    for shard in dict.fromkeys(map(str, shards)):
        if not shard.endswith(".safetensors") or set(shard) & set("/\\:"):
            problem = f"{where} names {shard!r}; only .safetensors files of that folder are opened"
            raise SpinliteError(problem, fix="use another copy of the model, and don't trust this one")
        if beside and not (index.parent / shard).is_file():
            raise SpinliteError(f"{name} is incomplete: {index.parent.name}/{shard} is missing", fix=FIX)


def check_tokens(name: str, folder: Path, most: int) -> None:
    """Raises SpinliteError if a tokenizer makes captions longer than the text encoder can read."""
    for path in sorted(folder.glob("tokenizer*/tokenizer_config.json")):
        try:
            length = json.loads(path.read_text(encoding="utf-8")).get("model_max_length")
        except (ValueError, AttributeError, RecursionError):
            raise SpinliteError(f"{name}: {path.parent.name}/{path.name} can't be read", fix=FIX) from None
        if not isinstance(length, int) or not 3 <= length <= most:
            problem = (
                f"{name}: {path.parent.name}/{path.name} says model_max_length = {length!r}, but its text encoder reads {most}"
            )
            raise SpinliteError(problem, fix=f'write "model_max_length": {most} there')


def check_config(name: str, part: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a part's settings. Raises SpinliteError if one that is needed is missing or can't be."""
    for key, (allowed, what) in CHECKS.get(part.removesuffix("_2"), {}).items():
        if not allowed(config.get(key)):
            value = json.dumps(config.get(key), default=str)[:60]
            file = f"{part}/{NEEDED.get(part, 'config.json')}"
            raise SpinliteError(f"{name}: {file} says {key} = {value}, which is not {what}", fix=FIX)
    return config


def _describe_folder(folder: Path) -> str:
    """What a folder without a UNet is, as the end of a sentence."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = ""
    if (folder / "transformer").is_dir() or (kind and not str(kind).startswith("StableDiffusion")):
        return f"is a model of another kind ({kind or 'it has a transformer, no UNet'})"
    if (folder / "config.json").is_file() and (folder / "diffusion_pytorch_model.safetensors").is_file():
        return "is one part of a model, not a whole one"
    return "has no unet: there is no folder unet/ in it"


def _fix_folder(folder: Path) -> str:
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if files:
        return f'name the file: --set model.base="{files[0].as_posix()}"'
    return FIX_UNSUPPORTED


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= 16 and all(map(_is_size, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _are_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(word, str) for word in value)


SIZE, SIZES = (_is_size, f"a whole number from 1 to {LARGEST}"), (_are_sizes, "a list of whole numbers")
NUMBER, WORDS = (_is_number, "a number above 0"), (_are_words, "a list of names")
CHECKS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "unet": {
        "sample_size": SIZE, "in_channels": SIZE, "out_channels": SIZE, "block_out_channels": SIZES, "down_block_types": WORDS,
        "up_block_types": WORDS, "layers_per_block": SIZE, "cross_attention_dim": SIZE,
    },
    "vae": {"block_out_channels": SIZES, "latent_channels": SIZE, "scaling_factor": NUMBER, "layers_per_block": SIZE},
    "text_encoder": {
        "num_hidden_layers": SIZE, "hidden_size": SIZE, "max_position_embeddings": SIZE, "num_attention_heads": SIZE,
        "intermediate_size": SIZE,
    },
    "scheduler": {"beta_start": NUMBER, "beta_end": NUMBER, "num_train_timesteps": SIZE},
}  # fmt: skip
