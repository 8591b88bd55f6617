"""Finds out what a LoRA or checkpoint file is, from its keys, shapes and header; without a base model or the network."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from spinlite.errors import SpinliteError
from spinlite.export.reports import Block, LoraReport, ModelReport, Part
from spinlite.families.checkpoint import KINDS, Kind, refuse_pickle
from spinlite.families.names import kohya_keys, published_shapes
from spinlite.families.programs import LoraFacts, Verdict, verdicts
from spinlite.families.recognise import Module, name_other_model, recognise
from spinlite.families.single_file import SingleFile, part_of, read_header
from spinlite.lora.metadata import tensor_bytes
from spinlite.lora.read import LoraFile, holds_lora, name_algorithm, read_lora_for, read_tensors_of
from spinlite.lora.tensors import Pair, norm

PRECISIONS = {"F16": "fp16", "F32": "fp32", "F64": "fp64"}
LARGEST = 2**20  # bytes; ComfyUI shows no larger header
STYLES = {  # how keys are named -> the layout, in words
    "blocks": "kohya, diffusers' block names", "original": "kohya, original block names", "text": "kohya",
    "dotted": "diffusers", "processor": "diffusers, older", "peft": "peft", "numbered": "cloneofsimo", "unknown": "kohya",
}  # fmt: skip


def inspect(path: Path) -> LoraReport | ModelReport:
    """Report on a LoRA or checkpoint. Raises SpinliteError for a missing file, a pickle, or a broken safetensors file."""
    refuse_pickle(path)
    if not path.is_file():
        raise SpinliteError(f"there is no file {path}", fix="name a .safetensors file")
    keys, metadata = read_header(path)
    return _report_lora(path) if holds_lora(keys) else _report_model(path, keys, metadata)


def _report_lora(path: Path) -> LoraReport:
    file = read_tensors_of(path)
    kind, modules = recognise(file)
    other_algorithm = name_algorithm(file)
    dora = any("magnitude" in parts for parts in file.parts.values())
    notes: list[str] = []
    pairs = {} if other_algorithm else _pairs(file, notes)
    alphas = {file.written[n]: parts["alpha"].item() for n, parts in file.parts.items() if "alpha" in parts}
    with path.open("rb") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")
    digest = hashlib.sha256(tensor_bytes(path.read_bytes())).hexdigest()
    programs: list[Verdict] = []
    if kind and not other_algorithm:
        without = [(name, pair) for name, pair in pairs.items() if "alpha" not in file.parts[name]]
        in_header = any(not math.isclose(file.alpha(name), pair.rank) for name, pair in without)
        programs = verdicts(LoraFacts(kind, modules, alphas, in_header, dora, file.foreign, file.metadata))
        if any(m.fits for m in modules):
            programs.append(_judge_init_lora(path, kind, len(modules)))
    if not other_algorithm:
        notes += _notes(file, kind, modules, header, digest)
    counts = dict(sorted(Counter(_part(m) for m in modules).items()))
    return LoraReport(
        file=path.name, size=path.stat().st_size, what=other_algorithm or ("DoRA" if dora else "LoRA"),
        base=_base(file, kind, modules), layout=_layout(modules), modules=counts,
        rank=_range(pair.rank for pair in pairs.values()), alpha=_alpha(file, alphas, pairs),
        precision=_precision(path), prediction=_prediction(file.metadata),
        blocks=_blocks(modules, list(map(pairs.get, file.parts))), programs=programs, hash=digest, notes=notes,
        metadata=dict(file.metadata),
    )  # fmt: skip


def _pairs(file: LoraFile, notes: list[str]) -> dict[str, Pair]:
    """Matrix pairs by the names of `file.parts`; a module that can't be read becomes a note."""
    pairs: dict[str, Pair] = {}
    faults: list[str] = []
    for name in file.parts:
        try:
            pairs[name] = file.pair(name)
        except SpinliteError as error:
            faults.append(error.problem.removeprefix(f"{file.path.name} "))
    if faults:
        notes.append(faults[0] + f", and {len(faults) - 1} more modules like it" * (len(faults) > 1))
    return pairs


def _judge_init_lora(path: Path, kind: Kind, count: int) -> Verdict:
    """Whether spinlite can start a run from the file."""
    known = published_shapes(kind)
    try:
        read_lora_for(path, kohya_keys(known, kind), known, f"the published {KINDS[kind]} model")
    except SpinliteError as error:
        return Verdict("spinlite --init-lora", 0, count, error.problem.removeprefix(f"{path.name} "))
    return Verdict("spinlite --init-lora", count, count, "")


def _notes(file: LoraFile, kind: Kind | None, modules: list[Module], header: int, digest: str) -> list[str]:
    unknown = [m.key for m in modules if m.name is None]
    other = [m.key for m in modules if m.name and not m.fits]
    labelled = file.metadata.get("sshs_model_hash", digest)
    notes = {
        f"{len(unknown)} modules that the base does not have, e.g. {next(iter(unknown), '')}": kind and unknown,
        f"{len(other)} modules with other sizes than in the published model, e.g. {next(iter(other), '')}": other,
        f"{len(file.foreign)} keys that do not belong to a LoRA, e.g. {next(iter(file.foreign), '')}": file.foreign,
        "the hash in its header (sshs_model_hash) does not match its data: model sites won't know it": labelled != digest,
        f"its header takes {header / LARGEST:.1f} MiB: ComfyUI shows no header above 1 MiB": header > LARGEST,
    }
    return [note for note, applies in notes.items() if applies]


def _base(file: LoraFile, kind: Kind | None, modules: list[Module]) -> str:
    if kind is None:
        return name_other_model([*(m.key for m in modules), *file.foreign]) or "an unknown model"
    resized = not name_algorithm(file) and not any(m.fits for m in modules)
    return KINDS[kind] + ", with other sizes than the published one" * resized


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
    """The changes of each block, from the network's input to its output, then the rest."""
    counts = Counter(_block(m) for m in modules)
    squares = dict.fromkeys(counts, 0.0)
    for module, pair in zip(modules, pairs, strict=True):
        squares[_block(module)] += norm(pair) ** 2 if pair else 0.0
    order = {"down": 0, "mid": 1, "up": 2, "rest": 3}
    names = sorted(counts, key=lambda name: (order.get(name.split()[0], 4), name))
    return [Block(name, counts[name], squares[name] ** 0.5) for name in names]


def _range(values: Any) -> str:
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return f"{distinct[0]:g}" if distinct else ""
    return f"{distinct[0]:g} to {distinct[-1]:g}"


def _alpha(file: LoraFile, alphas: Mapping[str, float], pairs: Mapping[str, Pair]) -> str:
    if alphas:
        return _range(alphas.values()) + (" (every module)" if len(set(alphas.values())) == 1 else " (mixed)")
    if "lora_adapter_metadata" in file.metadata:
        return f"{_range(map(file.alpha, pairs))} (from the header)"
    return "not given, so the rank"


def _prediction(metadata: Mapping[str, str]) -> str:
    label = metadata.get("modelspec.prediction_type", "")
    if label in ("v", "v_prediction") or metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v"
    return "eps" if label else "not stated"


def _precision(path: Path, keys: Any = None) -> str:
    """The precisions of the file's tensors, the most frequent first."""
    with safe_open(path, "pt") as file:
        kinds = Counter(file.get_slice(key).get_dtype() for key in keys or file.keys())
    return ", ".join(PRECISIONS.get(str(kind), str(kind).lower()) for kind, _ in kinds.most_common())


def _report_model(path: Path, keys: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> ModelReport:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(part_of(key), []).append(key)
    parts = [
        Part(name, len(group), sum(math.prod(keys[key]) for key in group), _precision(path, group))
        for name, group in sorted(groups.items())
    ]
    prediction, zero = "not stated", False
    try:
        checkpoint = SingleFile(path)
        what, zero = f"{KINDS[checkpoint.kind]} checkpoint, original layout", bool(checkpoint.zero_snr)
        if checkpoint.predictions:
            prediction = ", ".join(f"{value} (by {where})" for where, value in checkpoint.predictions.items())
        use = f"can be trained on: --set model.base={json.dumps(str(path))}"
    except SpinliteError as error:
        other = name_other_model(keys)
        what = error.problem.removeprefix(f"{path.name} ") + f": it belongs to {other}" * bool(other)
        use = f"can not be trained on: {error.fix}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    return ModelReport(path.name, size, what, prediction, zero, parts, digest, use, dict(metadata))
