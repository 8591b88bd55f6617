"""What a LoRA or checkpoint file is, by its keys, its shapes and its header. Nothing is fetched; no base is needed."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import KINDS, Kind, refuse_pickle
from spinlite.families.names import kohya_keys, published_shapes
from spinlite.families.programs import LoraFacts, Verdict, verdicts
from spinlite.families.recognise import Module, name_other_model, recognise
from spinlite.families.single_file import SingleFile, part_of, read_header
from spinlite.lora.metadata import tensor_bytes
from spinlite.lora.read import LoraFile, holds_lora, name_algorithm, read_lora_for, read_tensors_of
from spinlite.lora.tensors import Pair, norm

PRECISIONS = {"F16": "fp16", "F32": "fp32", "F64": "fp64"}
LARGEST = 2**20  # bytes of a header that ComfyUI shows
STYLES = {
    "blocks": "kohya, diffusers' block names", "original": "kohya, original block names", "text": "kohya",
    "dotted": "diffusers", "processor": "diffusers, older", "peft": "peft", "numbered": "cloneofsimo", "unknown": "kohya",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A level of the network, or a text encoder: how many modules are changed there, and by how much (Frobenius norm)."""

    name: str
    modules: int
    norm: float


@dataclass(frozen=True)
class LoraReport:
    """A LoRA file. `rank`, `alpha` and `base` are in words; `notes` are what is wrong or strange."""

    file: str
    size: int  # bytes
    what: str  # "LoRA", "DoRA", "LoHa", …
    base: str
    layout: str
    modules: dict[str, int]  # by part
    rank: str
    alpha: str
    precision: str
    prediction: str
    blocks: list[Block]
    programs: list[Verdict]
    hash: str  # SHA-256 of the data, which programs know it by
    notes: list[str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Part:
    """Of a checkpoint: its tensors, their numbers, and what these are written in."""

    name: str
    tensors: int
    parameters: int
    precision: str


@dataclass(frozen=True)
class ModelReport:
    """A checkpoint. `use` says whether spinlite trains on it, or why not."""

    file: str
    size: int
    what: str
    prediction: str
    zero_snr: bool
    parts: list[Part]
    hash: str  # SHA-256 of the file; A1111 shows the first 10 digits
    use: str
    metadata: dict[str, str]


def inspect(path: Path) -> LoraReport | ModelReport:
    """Raises SpinliteError for what is no whole safetensors file."""
    refuse_pickle(path)
    if not path.is_file():
        raise SpinliteError(f"there is no file {path}", fix="name a .safetensors file")
    keys, metadata = read_header(path)
    return _lora(path) if holds_lora(keys) else _model(path, keys, metadata)


def _lora(path: Path) -> LoraReport:
    file = read_tensors_of(path)
    kind, modules = recognise(file)
    other = name_algorithm(file)
    dora = any("magnitude" in parts for parts in file.parts.values())
    notes: list[str] = []
    pairs = {} if other else _pairs(file, notes)
    alphas = {file.written[n]: parts["alpha"].item() for n, parts in file.parts.items() if "alpha" in parts}
    with path.open("rb") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")
    digest = hashlib.sha256(tensor_bytes(path.read_bytes())).hexdigest()
    programs: list[Verdict] = []
    if kind and not other:
        headed = any("alpha" not in file.parts[n] and not math.isclose(file.alpha(n), pair.rank) for n, pair in pairs.items())
        programs = verdicts(LoraFacts(kind, modules, alphas, headed, dora, file.foreign, file.metadata))
        if any(m.fits for m in modules):
            programs.append(_ours(path, kind, len(modules)))
    notes += _notes(file, kind, modules, header, digest) if not other else []
    counts = dict(sorted(Counter(_part(m) for m in modules).items()))
    return LoraReport(
        file=path.name, size=path.stat().st_size, what=other or ("DoRA" if dora else "LoRA"), base=_base(file, kind, modules),
        layout=_layout(modules), modules=counts, rank=_range(pair.rank for pair in pairs.values()),
        alpha=_alpha(file, alphas, pairs), precision=_precision(path), prediction=_prediction(file.metadata),
        blocks=_blocks(modules, list(map(pairs.get, file.parts))), programs=programs, hash=digest, notes=notes,
        metadata=dict(file.metadata),
    )  # fmt: skip


def _pairs(file: LoraFile, notes: list[str]) -> dict[str, Pair]:
    """By the names of `file.parts`; what can't be put together becomes a note."""
    found: dict[str, Pair] = {}
    wrong: list[str] = []
    for name in file.parts:
        try:
            found[name] = file.pair(name)
        except SpinliteError as error:
            wrong.append(error.problem.removeprefix(f"{file.path.name} "))
    if wrong:
        notes.append(wrong[0] + f", and {len(wrong) - 1} modules more like it" * (len(wrong) > 1))
    return found


def _ours(path: Path, kind: Kind, count: int) -> Verdict:
    """Whether a run may start from it."""
    known = published_shapes(kind)
    try:
        read_lora_for(path, kohya_keys(known, kind), known, f"the published {KINDS[kind]} model")
    except SpinliteError as error:
        return Verdict("spinlite --init-lora", 0, count, error.problem.removeprefix(f"{path.name} "))
    return Verdict("spinlite --init-lora", count, count, "")


def _notes(file: LoraFile, kind: Kind | None, modules: list[Module], header: int, digest: str) -> list[str]:
    unknown = [m.key for m in modules if m.name is None]
    other = [m.key for m in modules if m.name and not m.fits]
    said = file.metadata.get("sshs_model_hash", digest)
    found = {
        f"{len(unknown)} modules that the base has not, e.g. {next(iter(unknown), '')}": kind and unknown,
        f"{len(other)} modules of other sizes than the published model's, e.g. {next(iter(other), '')}": other,
        f"{len(file.foreign)} keys of something else, e.g. {next(iter(file.foreign), '')}": file.foreign,
        "its header's hash (sshs_model_hash) is not that of its data: model sites will not know it": said != digest,
        f"its header takes {header / LARGEST:.1f} MiB: ComfyUI shows none above 1": header > LARGEST,
    }
    return [note for note, true in found.items() if true]


def _base(file: LoraFile, kind: Kind | None, modules: list[Module]) -> str:
    if kind is None:
        return name_other_model([*(m.key for m in modules), *file.foreign]) or "no model that is known here"
    changed = not name_algorithm(file) and not any(m.fits for m in modules)
    return KINDS[kind] + ", of other sizes than the published one" * changed


def _layout(modules: list[Module]) -> str:
    styles = Counter(m.style for m in modules)
    if {"blocks", "original"} <= styles.keys():
        return "kohya, both styles of block names"
    if len(styles) > 1:
        del styles["text"]
    return ", ".join(dict.fromkeys(STYLES[style] for style, _ in styles.most_common()))


def _part(module: Module) -> str:
    if module.name is None and not module.is_text_encoder:
        return "unknown"
    if not module.is_text_encoder:
        return "UNet"
    return "text encoder 2" if (module.name or module.key).startswith(("text_encoder_2", "lora_te2")) else "text encoder"


def _block(module: Module) -> str:
    side, _, rest = (module.name or "").removeprefix("unet.").partition(".")
    match side:
        case "down_blocks" | "up_blocks":
            return f"{side.removesuffix('_blocks')} {rest.split('.')[0]}"
        case "mid_block":
            return "mid"
    return "rest" if _part(module) == "UNet" else _part(module)


def _blocks(modules: list[Module], pairs: list[Pair | None]) -> list[Block]:
    """From the way in to the way out, then the rest."""
    counts = Counter(_block(m) for m in modules)
    squares = dict.fromkeys(counts, 0.0)
    for module, pair in zip(modules, pairs, strict=True):
        squares[_block(module)] += norm(pair) ** 2 if pair else 0.0
    order = {"down": 0, "mid": 1, "up": 2, "rest": 3}
    names = sorted(counts, key=lambda name: (order.get(name.split()[0], 4), name))
    return [Block(name, counts[name], squares[name] ** 0.5) for name in names]


def _range(values: Any) -> str:
    found = sorted(set(values))
    return "" if not found else f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _alpha(file: LoraFile, alphas: Mapping[str, float], pairs: Mapping[str, Pair]) -> str:
    if alphas:
        return _range(alphas.values()) + (" (every module)" if len(set(alphas.values())) == 1 else " (mixed)")
    if "lora_adapter_metadata" in file.metadata:
        return f"{_range(map(file.alpha, pairs))} (by the header)"
    return "not given, so the rank"


def _prediction(metadata: Mapping[str, str]) -> str:
    said = metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction") or metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v"
    return "eps" if said else "not said"


def _precision(path: Path, keys: Any = None) -> str:
    """What the numbers are written in; several where they are."""
    with safe_open(path, "pt") as file:
        kinds = Counter(file.get_slice(key).get_dtype() for key in keys or file.keys())
    return ", ".join(PRECISIONS.get(str(kind), str(kind).lower()) for kind, _ in kinds.most_common())


def _model(path: Path, keys: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> ModelReport:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(part_of(key), []).append(key)
    parts = [
        Part(name, len(group), sum(math.prod(keys[key]) for key in group), _precision(path, group))
        for name, group in sorted(groups.items())
    ]
    prediction, zero = "not said", False
    try:
        checkpoint = SingleFile(path)
        what, zero = f"{KINDS[checkpoint.kind]} checkpoint, original layout", bool(checkpoint.zero_snr)
        if checkpoint.predictions:
            prediction = ", ".join(f"{value} (by {where})" for where, value in checkpoint.predictions.items())
        use = f"a base to train on: --set model.base={json.dumps(str(path))}"
    except SpinliteError as error:
        other = name_other_model(keys)
        what = error.problem.removeprefix(f"{path.name} ") + f": it is of {other}" * bool(other)
        use = f"not as a base: {error.fix}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    return ModelReport(path.name, size, what, prediction, zero, parts, digest, use, dict(metadata))
