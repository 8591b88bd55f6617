"""Which base model a LoRA file was made for. Its modules' names and shapes tell; the base itself is not needed."""

import re
from collections.abc import Iterable, Mapping

from spinlite.errors import SpinliteError
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.lora_facts import Module, Style
from spinlite.families.record import Files
from spinlite.lora.file import LoraFile
from spinlite.lora.keys import CLIP, LDM
from spinlite.lora.match import Shapes, match_modules
from spinlite.lora.numbers import Stored

OTHER_MODELS = {  # pattern in a key -> the kind of model it belongs to
    r"single_transformer_blocks|double_blocks|single_blocks": "FLUX or a relative of it",
    r"joint_blocks|add_q_proj|add_k_proj": "SD 3",
    r"double_layers|single_layers": "AuraFlow",
    r"noise_refiner|context_refiner": "Lumina or Z-Image",
    r"clip_txt_pooled_mapper|effnet_mapper": "Stable Cascade",
    r"img_mod\.|txt_mod\.": "Qwen-Image",
    r"patchify_proj": "LTX-Video",
    r"cross_attn|self_attn_q.*blocks": "a video model (Wan or the like)",
    r"transformer_blocks|caption_projection": "a diffusion transformer",
}


def recognise(file: LoraFile) -> tuple[Kind | None, list[Module]]:
    """(the kind of base that has most of the file's modules, the modules in the file's order); None if no kind has any.

    SD 1.x and 2.x have the same module names: shapes tell them apart, and if they don't, the header does.
    """
    candidates: dict[Kind, list[Module]] = {kind: _match_kind(file, kind) for kind in KINDS}
    version = file.metadata.get("ss_base_model_version", "")
    named = {kind: record.lora.version for kind, record in KINDS.items() if record.lora.version}
    labelled = next((kind for kind, start in named.items() if version.startswith(start)), None)
    encoders = {part.split("_")[1] for part in file.parts if part.startswith("lora_te")}

    def score(kind: Kind) -> tuple[int, int, bool, bool]:
        modules = candidates[kind]
        fitting, known = sum(m.fits for m in modules), sum(m.name is not None for m in modules)
        return fitting, known, kind == labelled, (len(KINDS[kind].lora.text_widths) == 2) == bool(encoders & {"te1", "te2"})

    def counts(kind: Kind) -> bool:
        """Whether a kind can be it. Transformers of other models have a few modules of the same name and shape."""
        return not KINDS[kind].is_flow or 2 * score(kind)[0] > len(candidates[kind])

    best = max(filter(counts, KINDS), key=score)
    return (best if score(best)[1] else None), candidates[best]


def name_other_model(keys: Iterable[str]) -> str:
    """Which other kind of model than Stable Diffusion has such keys, in words; "" if that is not known."""
    keys = [key for key in keys if not re.search("(down|up|input|output)_blocks|mid(dle)?_block", key)]
    return next((what for pattern, what in OTHER_MODELS.items() if any(re.search(pattern, key) for key in keys)), "")


def _match_kind(file: LoraFile, kind: Kind) -> list[Module]:
    lora = KINDS[kind].lora
    known = lora.shapes()
    try:
        names, _ = match_modules(file, lora.keys(known), known)
    except SpinliteError:  # numbered modules in an unknown order
        names = {}
    return [_describe_module(file.written[name], names.get(name), parts, known, kind) for name, parts in file.parts.items()]


def _describe_module(
    key: str, names: str | tuple[str, ...] | None, parts: Mapping[str, Stored], known: Shapes, kind: Kind
) -> Module:
    """`names` are several if the module of the file is a matrix that they share; the first stands for all."""
    name, shared = (names, 1) if isinstance(names, str | None) else (names[0], len(names))
    inner = (name or "").removeprefix("unet.")
    part = inner.split(".")[0]
    ends = [parts[end].shape[axis] for end, axis in (("up", 0), ("down", 1)) if end in parts and len(parts[end].shape) > 1]
    if name and inner in known:
        rows, columns = known[inner][:2]
        fits = ends == [shared * rows, columns]
    else:
        width = KINDS[kind].lora.text_widths.get(part)
        name = name if width else None
        fits = bool(name) and bool(ends) and min(ends) == width
    return Module(key, _naming_style(key, name, KINDS[kind].files), name, fits)


def _naming_style(key: str, name: str | None, files: Files | None) -> Style:
    """`files` are those of a flow model. A dotted name that is diffusers' and the original one too counts as diffusers'."""
    if re.match(r"(unet|text_encoder):\d", key):
        return "numbered"
    if "base_model.model." in key:
        return "peft"
    if ".processor." in key:
        return "motion" if ".temporal_transformer." in key else "processor"
    if LDM.fullmatch(key) or CLIP.fullmatch(key):
        return "ldm"
    if "." in key:
        native = not key.endswith((name or key).removeprefix("unet."))
        return "ldm" if files and name and native else "dotted"
    if key.startswith("lora_te"):
        return "text"
    if name is None:
        return "unknown"
    if files and key == f"lora_unet_{_original(name, files).replace('.', '_')}":
        return "original"
    return "blocks" if key == f"lora_{name.replace('.', '_')}" else "original"


def _original(name: str, files: Files) -> str:
    """A module of a flow model, as its published file names it."""
    return files.native(f"{name.removeprefix('unet.')}.weight").key.removesuffix(".weight")
