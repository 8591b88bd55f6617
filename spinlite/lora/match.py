"""Find the modules of a LoRA file in a base, and refuse a file that does not belong there.

Each module of the base has a full name. Kohya's keys don't hold it (their underscores can't be split), so they are looked up in
a table of the base's modules.
"""

import math
from collections.abc import Mapping

from spinlite.lora.file import COPY, LoraFile
from spinlite.lora.keys import BLOCKS, TEXT, text_encoder_module
from spinlite.lora.numbers import Matrices

Shapes = Mapping[str, tuple[int, ...]]  # diffusers' name of a UNet module -> the shape of its weight


Names = Mapping[str, str | tuple[str, ...]]  # a module's key in files -> its full name, or those of several in one matrix


def match_modules(file: LoraFile, names: Names, shapes: Shapes) -> tuple[dict[str, str | tuple[str, ...]], list[str]]:
    """({module: full name} for the modules that the base has, the other modules).

    `names`: keys that modules of the base may have in files -> full names. `shapes`: those of its network's weights.
    """
    if file.layout == "cloneofsimo":
        return _numbered(file, list(shapes))
    known: dict[str, str | tuple[str, ...]] = {}
    for name in file.parts:
        full = names.get(name) or text_encoder_module(name) or name
        if isinstance(full, tuple) or name in names or TEXT.fullmatch(full) or full.removeprefix("unet.") in shapes:
            known[name] = full
    return known, [name for name in file.parts if name not in known]


def matrices_for(file: LoraFile, names: Names, shapes: Shapes, base: str, text_alone: bool = False) -> dict[str, Matrices]:
    """The changes of a file for a base model: full name -> change. `base` is the base's kind in words.

    Raises SpinliteError if the file was made for another kind of base, is incomplete or holds something that would be lost;
    and if it changes text encoders only, unless `text_alone`.
    """
    known, unknown = match_modules(file, names, shapes)
    if any("magnitude" in parts for parts in file.parts.values()):
        raise file.error("is a DoRA: programs disagree about what its magnitudes mean", "use a plain LoRA")
    if pairs := find_doubles(known):
        raise file.error(f"changes one module twice, as {pairs[0][0]} and as {pairs[0][1]}", COPY)
    lora = {
        full: _shaped(change, shapes.get(full.removeprefix("unet.")))
        for name, fulls in known.items()
        for full, change in _split(file.matrices(name), fulls)
    }
    wrong = [name for name, change in lora.items() if not _fits(change, shapes.get(name.removeprefix("unet.")), name)]
    if wrong or (unknown and not any(name.startswith("unet.") for name in lora)):
        example = wrong[0] if wrong else unknown[0]
        what = f"changes {lora[example].shape}, where the base has {shapes[example[5:]]}" if wrong else "is not in it"
        raise file.error(f"does not fit {base}: {example} {what}", "use a LoRA that was made for this kind of base model")
    if unknown or file.foreign:
        left = unknown + file.foreign
        raise file.error(f"holds {len(left)} keys that {base} has no place for, e.g. {left[0]}", COPY)
    if not text_alone and not any(name.startswith("unet.") for name in lora):
        raise file.error("changes only the text encoder, but spinlite trains the UNet", "use a LoRA with a UNet part")
    return lora


def find_doubles(known: Names) -> list[tuple[str, str]]:
    """Names in a file that stand for the same module of the base, such as kohya's two namings of blocks."""
    first: dict[str, str] = {}
    pairs = [(name, full) for name, fulls in known.items() for full in ((fulls,) if isinstance(fulls, str) else fulls)]
    return [(first[full], name) for name, full in pairs if first.setdefault(full, name) != name]


def _split(change: Matrices, names: str | tuple[str, ...]) -> list[tuple[str, Matrices]]:
    """A change by full names. One of modules that share a matrix is cut into their rows; each keeps the whole `down`."""
    if isinstance(names, str):
        return [(names, change)]
    rows = len(change.up) // len(names)
    return [(name, Matrices(change.down, change.up[i * rows : (i + 1) * rows])) for i, name in enumerate(names)]


def _shaped(change: Matrices, shape: tuple[int, ...] | None) -> Matrices:
    """The change in the base's shape: some files have a 1 x 1 convolution where the base has a linear layer, or vice versa."""
    alike = shape is not None and change.shape[:2] == shape[:2] and math.prod(change.shape) == math.prod(shape)
    if shape is None or change.shape == shape or not alike:
        return change
    ones = [1] * (len(shape) - 2)
    return Matrices(change.down.reshape(-1, *shape[1:]), change.up.reshape(-1, change.rank, *ones))


def _fits(change: Matrices, shape: tuple[int, ...] | None, name: str) -> bool:
    if shape is None:
        return not name.startswith("unet.")
    return change.shape == shape


def _numbered(file: LoraFile, modules: list[str]) -> tuple[dict[str, str | tuple[str, ...]], list[str]]:
    """Modules by number. In each block cloneofsimo counts self-attention, then GEGLU, then cross-attention."""
    targets = {str(target) for target in file.header_value("unet", '["CrossAttention", "Attention", "GEGLU"]', list)}
    if targets - {"CrossAttention", "Attention", "GEGLU"}:
        what = f"numbers modules of {', '.join(sorted(targets))}, in an order that is not known"
        raise file.error(what, "use a version in kohya's layout")
    leaves = [f"attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    leaves += ["ff.net.0.proj"] * ("GEGLU" in targets) + [f"attn2.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    inner = [m.removesuffix("attn1.to_q") for m in modules if m.endswith("attn1.to_q")]
    first = [block for side in BLOCKS for block in inner if block.startswith(side)]
    orders = {
        "unet": [f"unet.{block}{leaf}" for block in first for leaf in leaves],
        "text_encoder": [
            f"text_encoder.text_model.encoder.layers.{i}.self_attn.{leaf}_proj"
            for i in range(48) for leaf in ("k", "v", "q", "out")
        ],
    }  # fmt: skip
    known: dict[str, str | tuple[str, ...]] = {}
    for name in file.parts:
        part, _, number = name.partition(":")
        if part in orders and number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(orders[part]):
            known[name] = orders[part][int(number)]
    return known, [name for name in file.parts if name not in known]
