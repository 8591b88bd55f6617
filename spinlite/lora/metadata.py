"""The header of a LoRA file: kohya's `ss_*`, the WebUIs' `sshs_*`, ModelSpec's and spinlite's own keys. Values are text."""

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from spinlite import __version__
from spinlite.lora.tensors import Lora

THUMBNAIL = 256  # px a side
TAGS = 2**16  # bytes of the list of tags: ComfyUI reads headers up to 1 MiB, and the largest network's keys take 0.45 MiB
LEGACY = slice(0x100000, 0x110000)


@dataclass(frozen=True)
class HeaderInfo:
    """The contents of a header. Nothing here holds a path of the computer that made the file."""

    title: str  # the file's stem, as in `<lora:TITLE:1>`
    family: Mapping[str, str]  # keys about the base model, from `Family.export_metadata`
    base: str = ""  # the base's name, for people
    strength: float = 1.0
    description: str = ""
    tags: Mapping[str, int] = field(default_factory=dict)  # how often each tag of the captions occurs
    pictures: int = 0  # trained on
    started: float = 0.0  # unix time
    finished: float = 0.0
    thumbnail: Image.Image | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)  # spinlite's own: each is written as JSON under spinlite.NAME


def tag_counts(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs in the captions, as kohya counts; the most frequent ones, up to TAGS bytes."""
    counts = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    tags: dict[str, int] = {}
    size = 0
    for tag, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        size += len(json.dumps(tag).encode()) + 16
        if size > TAGS:
            break
        tags[tag] = count
    return tags


def build_header(tensors: Mapping[str, Tensor], lora: Lora, alpha: float, about: HeaderInfo) -> dict[str, str]:
    """The whole header of a file with these tensors, with their hashes."""
    title, size = about.title, about.family.get("modelspec.resolution", "")
    kohya: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        **network_keys(lora, alpha),
        "ss_output_name": title,
        "ss_sd_model_name": about.base,
        "ss_clip_skip": about.family.get("ss_clip_skip", "None"),
        "ss_num_train_images": about.pictures,
        "ss_training_started_at": about.started,
        "ss_training_finished_at": about.finished,
        "ss_training_comment": about.description,
        "ss_tag_frequency": json.dumps({title: dict(about.tags)}, ensure_ascii=False),
        "ss_dataset_dirs": json.dumps({title: {"n_repeats": 1, "img_count": about.pictures}}, ensure_ascii=False),
    }
    spec: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "modelspec.description": about.description,
        "modelspec.date": datetime.fromtimestamp(about.finished, UTC).isoformat(timespec="seconds") if about.finished else "",
        "modelspec.thumbnail": thumbnail(about.thumbnail) if about.thumbnail else "",
    }
    if size:
        sides = [int(side) for side in size.split("x")]
        bucket = {"resolution": sides, "count": about.pictures}
        kohya["ss_resolution"] = str(tuple(sides))
        kohya["ss_bucket_info"] = json.dumps({"buckets": {"0": bucket}})
    ours = {"version": __version__, "strength": about.strength, **about.ours}
    header = {**about.family, **kohya, **spec}
    header |= {f"spinlite.{name}": json.dumps(value, sort_keys=True, ensure_ascii=False) for name, value in ours.items()}
    header = {name: str(value) for name, value in header.items() if value != ""}
    return {**header, **compute_hashes(tensors, header)}


def network_keys(lora: Lora, alpha: float | None) -> dict[str, str]:
    """kohya's keys for rank ("dim") and alpha. alpha None: it is the rank."""
    alpha_text = _dim(lora) if alpha is None else f"{alpha:g}"
    return {
        "ss_network_dim": _dim(lora),
        "ss_network_alpha": alpha_text,
        "ss_network_args": json.dumps(_convolutions(lora, alpha_text)),
    }


def compute_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes by which programs recognise a file.

    The SHA-256 is of the bytes after the header, so it does not depend on the header. The old hash of the additional-networks
    extension is over 64 KiB of the file as it would be with kohya's keys only.
    """
    content = save(dict(tensors), {name: value for name, value in metadata.items() if name.startswith("ss_")})
    digest = hashlib.sha256(tensor_bytes(content)).hexdigest()
    legacy = hashlib.sha256(content[LEGACY]).hexdigest()[:8]
    return {"sshs_model_hash": digest, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{digest}"}


def tensor_bytes(content: bytes) -> bytes:
    """The bytes of a safetensors file after its header."""
    return content[8 + int.from_bytes(content[:8], "little") :]


def thumbnail(picture: Image.Image) -> str:
    """A picture as a data URL: a JPEG of 256 x 256 px."""
    buffer = io.BytesIO()
    picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _dim(lora: Lora) -> str:
    """The rank; "Dynamic" if modules differ in it, as kohya's resizing script writes."""
    ranks = {pair.rank for pair in lora.values()}
    return str(ranks.pop()) if len(ranks) == 1 else "Dynamic"


def _convolutions(lora: Lora, alpha: str) -> dict[str, str]:
    """kohya's network arguments for convolutions larger than 1 x 1; {} without any."""
    wide = {name: pair for name, pair in lora.items() if pair.down.ndim == 4 and pair.down.shape[-1] > 1}
    return {"conv_dim": _dim(wide), "conv_alpha": alpha} if wide else {}
