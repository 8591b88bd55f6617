"""Finds out what a LoRA or checkpoint file is, from its keys, shapes and header; without a base model or the network.

A LoRA is read without torch, which takes longer to import than all the rest.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.export.precision import describe_precision
from spinlite.export.reports import Block, LoraReport, ModelReport
from spinlite.families.faults import find_faults
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.lora_facts import LoraFacts, Module, Verdict
from spinlite.families.recognise import name_other_model, recognise
from spinlite.lora.file import LoraFile, holds_lora, name_algorithm, open_lora, read_keys, read_lora_file
from spinlite.lora.match import find_doubles, matrices_for
from spinlite.lora.numbers import Matrices

LARGEST = 2**20  # bytes; ComfyUI shows no larger header
STYLES = {  # how keys are named -> the layout, in words
    "blocks": "kohya, diffusers' block names", "original": "kohya, original block names", "text": "kohya",
    "dotted": "diffusers",
    "ldm": "ComfyUI, original block names",
    "processor": "diffusers, older", "peft": "peft", "numbered": "cloneofsimo", "motion": "AnimateDiff",
    "unknown": "kohya",
}  # fmt: skip


def inspect(path: Path) -> LoraReport | ModelReport:
    """Report on a LoRA or checkpoint. Raises SpinliteError for a missing file, a pickle, or a broken safetensors file."""
    if not path.is_file():
        raise SpinliteError(f"there is no file {path}", fix="name a .safetensors file")
    if holds_lora(read_keys(path)[0]):
        return _report_lora(path)
    from spinlite.export.inspect_model import report_model  # here, because it needs torch and diffusers

    return report_model(path)


def _report_lora(path: Path) -> LoraReport:
    file = read_lora_file(path)
    kind, modules = recognise(file)
    other_algorithm = name_algorithm(file)
    faults = {} if other_algorithm else find_faults(file)
    problems: list[str] = []
    changes = {} if other_algorithm else _changes(file, problems)
    net = KINDS[kind].net_title if kind else "UNet"
    blocks = _blocks(modules, list(map(changes.get, file.parts)), net)
    alphas = _alphas(file)
    dora = any("magnitude" in parts for parts in file.parts.values())
    digest = hashlib.sha256(file.data).hexdigest()
    programs: list[Verdict] = []
    if kind and not other_algorithm:
        without = [name for name in changes if "alpha" not in file.parts[name]]
        in_header = any(not math.isclose(file.alpha(name), changes[name].rank) for name in without)
        facts = LoraFacts(kind, modules, alphas, in_header, dora, file.foreign, file.metadata, faults)
        programs = KINDS[kind].lora.verdicts(facts)
        if any(m.fits for m in modules):
            programs.append(_judge_init_lora(path, kind, len(modules)))
    notes = problems + ([] if other_algorithm else _notes(file, kind, modules, digest))
    if changes and not dora and not any(block.norm for block in blocks):
        notes.insert(0, "this LoRA changes nothing: all its changes are zero")
    return LoraReport(
        file=path.name, size=path.stat().st_size, what=other_algorithm or ("DoRA" if dora else "LoRA"),
        base=_base(file, kind, modules), layout=_layout(modules),
        modules=dict(sorted(Counter(_part(m, net) for m in modules).items())),
        rank=_range(change.rank for change in changes.values()), alpha=_alpha(file, alphas, changes),
        precision=describe_precision(path), prediction=_prediction(file.metadata), blocks=blocks, programs=programs,
        hash=digest, notes=notes, metadata=dict(file.metadata),
    )  # fmt: skip


def _changes(file: LoraFile, problems: list[str]) -> dict[str, Matrices]:
    """Changes by the names of `file.parts`; modules that can't be used become one problem, in words."""
    changes: dict[str, Matrices] = {}
    faults: list[str] = []
    for name in file.parts:
        try:
            changes[name] = file.matrices(name)
        except SpinliteError as error:
            faults.append(error.problem.removeprefix(f"{file.path.name} "))
    if faults:
        problems.append(faults[0] + f", and {len(faults) - 1} more modules like it" * (len(faults) > 1))
    return changes


def _alphas(file: LoraFile) -> dict[str, float]:
    """The alphas that are tensors, by the module's name in the file; those that are not one number are left out."""
    stored = {file.written[name]: parts["alpha"] for name, parts in file.parts.items() if "alpha" in parts}
    return {name: alpha.numbers().item() for name, alpha in stored.items() if math.prod(alpha.shape) == 1 and alpha.is_known}


def _judge_init_lora(path: Path, kind: Kind, count: int) -> Verdict:
    """Whether spinlite can start a run from the file."""
    record = KINDS[kind]
    known = record.lora.shapes()
    try:
        matrices_for(open_lora(path), record.lora.keys(known), known, f"the published {record.title} model")
    except SpinliteError as error:
        return Verdict("spinlite --init-lora", 0, count, error.problem.removeprefix(f"{path.name} "))
    return Verdict("spinlite --init-lora", count, count, "")


def _notes(file: LoraFile, kind: Kind | None, modules: list[Module], digest: str) -> list[str]:
    unknown = [m.key for m in modules if m.name is None]
    other = [m.key for m in modules if m.name and not m.fits]
    doubles = find_doubles({m.key: m.name for m in modules if m.name})
    header = file.path.stat().st_size - len(file.data)
    labelled = file.metadata.get("sshs_model_hash", digest)
    notes = {
        f"{len(unknown)} modules that the base does not have, e.g. {next(iter(unknown), '')}": kind and unknown,
        f"{len(other)} modules with other sizes than in the published model, e.g. {next(iter(other), '')}": other,
        f"{len(doubles)} modules are there twice, e.g. {' and '.join(next(iter(doubles), ()))}: programs keep one": doubles,
        f"{len(file.twice)} tensors that are there twice under other names, e.g. {next(iter(file.twice), '')}": file.twice,
        f"{len(file.foreign)} keys that do not belong to a LoRA, e.g. {next(iter(file.foreign), '')}": file.foreign,
        "the hash in its header (sshs_model_hash) does not match its data: model sites won't know it": labelled != digest,
        f"its header takes {header / LARGEST:.1f} MiB: ComfyUI shows no header above 1 MiB": header > LARGEST,
    }
    return [note for note, applies in notes.items() if applies]


def _base(file: LoraFile, kind: Kind | None, modules: list[Module]) -> str:
    if kind is None:
        return name_other_model([*(m.key for m in modules), *file.foreign]) or "an unknown model"
    resized = not name_algorithm(file) and not any(m.fits for m in modules)
    return KINDS[kind].title + ", with other sizes than the published one" * resized


def _layout(modules: list[Module]) -> str:
    styles = Counter(m.style for m in modules)
    if {"blocks", "original"} <= styles.keys():
        return "kohya, both styles of block names"
    if len(styles) > 1:
        del styles["text"]
    return ", ".join(dict.fromkeys(STYLES[style] for style, _ in styles.most_common()))


def _part(module: Module, net: str) -> str:
    """`net` is what the network of this kind of model is called."""
    if module.name is None and not module.is_text_encoder:
        return "unknown"
    if not module.is_text_encoder:
        return net
    return "text encoder 2" if (module.name or module.key).startswith(("text_encoder_2", "lora_te2")) else "text encoder"


def _block(module: Module, net: str) -> str:
    side, _, rest = (module.name or "").removeprefix("unet.").partition(".")
    match side:
        case "down_blocks" | "up_blocks":
            return f"{side.removesuffix('_blocks')} {rest.split('.')[0]}"
        case "mid_block":
            return "mid"
        case "transformer_blocks" | "single_transformer_blocks" | "blocks" | "layers":
            kind = {"transformer_blocks": "double", "single_transformer_blocks": "single"}.get(side, "block")
            return f"{kind} {rest.split('.')[0]}"
    return "rest" if _part(module, net) == net else _part(module, net)


def _blocks(modules: list[Module], changes: list[Matrices | None], net: str) -> list[Block]:
    """The changes of each block, from the network's input to its output, then the rest."""
    counts = Counter(_block(m, net) for m in modules)
    squares = dict.fromkeys(counts, 0.0)
    for module, change in zip(modules, changes, strict=True):
        squares[_block(module, net)] += change.norm() ** 2 if change else 0.0
    order = {"down": 0, "mid": 1, "up": 2, "double": 3, "single": 4, "block": 5, "rest": 6}
    numbered = {name: int(name.split()[-1]) if name.split()[0] in order and name[-1].isdigit() else 0 for name in counts}
    names = sorted(counts, key=lambda name: (order.get(name.split()[0], 7), numbered[name], name))
    return [Block(name, counts[name], squares[name] ** 0.5) for name in names]


def _range(values: Any) -> str:
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return f"{distinct[0]:g}" if distinct else ""
    return f"{distinct[0]:g} to {distinct[-1]:g}"


def _alpha(file: LoraFile, alphas: Mapping[str, float], changes: Mapping[str, Matrices]) -> str:
    if alphas:
        return _range(alphas.values()) + (" (every module)" if len(set(alphas.values())) == 1 else " (mixed)")
    if "lora_adapter_metadata" in file.metadata:
        return f"{_range(map(file.alpha, changes))} (from the header)"
    return "not given, so the rank"


def _prediction(metadata: Mapping[str, str]) -> str:
    label = metadata.get("modelspec.prediction_type", "")
    if label in ("v", "v_prediction") or metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v"
    return "eps" if label else "not stated"
