"""What the kinds of flow model share: how files name the modules of a transformer, and which programs load its LoRA files."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from spinlite.families.faults import WORDS
from spinlite.families.lora_facts import LoraFacts, Module, Style, Verdict
from spinlite.families.record import Native, Shapes

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "net.")  # before the names of a network's tensors in one file


def prefix_of(shapes: Shapes, key: str) -> str | None:
    """What stands before the names of the network in a file, if the network has a tensor with this name; None if not."""
    return next((prefix for prefix in PREFIXES if f"{prefix}{key}" in shapes), None)


def lora_keys(modules: Iterable[str], native: Native) -> dict[str, str | tuple[str, ...]]:
    """Every key that a module of a transformer may have in a LoRA file -> its full name, or those of three that share a matrix.

    Names are diffusers' or the original ones, dotted with a prefix, or in kohya's way.
    """
    keys: dict[str, str | tuple[str, ...]] = {}
    joined: dict[str, dict[int, str]] = {}
    for module in modules:
        for prefix in ("transformer.", "diffusion_model.", ""):
            keys[f"{prefix}{module}"] = f"unet.{module}"
        for prefix in ("lora_transformer_", "lora_unet_", "lycoris_"):
            keys[prefix + module.replace(".", "_")] = f"unet.{module}"
        place = native(f"{module}.weight")
        name = place.key.removesuffix(".weight")
        if place.third is None:
            keys |= dict.fromkeys(_native_keys(name), f"unet.{module}")
        else:
            joined.setdefault(name, {})[place.third] = f"unet.{module}"
    for name, thirds in joined.items():
        keys |= dict.fromkeys(_native_keys(name), tuple(thirds[i] for i in sorted(thirds)))
    return keys


def _native_keys(name: str) -> Sequence[str]:
    return f"diffusion_model.{name}", name, f"lora_unet_{name.replace('.', '_')}"


Readers = Mapping[str, Sequence[tuple[Style, str]]]  # program -> the (style, beginning of a key) that it reads


def judge_by_prefix(readers: Readers) -> Callable[[LoraFacts], list[Verdict]]:
    """Verdicts of programs that read a file if its keys are named in a way that they know, and refuse broken numbers."""

    def judge(program: str, known: Sequence[tuple[Style, str]], facts: LoraFacts) -> Verdict:
        count = len(facts.modules)
        if not known:
            return Verdict(program, 0, count, "it does not know this kind of model")
        if "broken" in facts.faults.values():
            return Verdict(program, 0, count, f"{WORDS['broken']}: its pictures come out black")
        lost = [why for m in facts.modules if (why := _lost(m, known, facts))]
        words = "; ".join(dict.fromkeys(lost))
        return Verdict(program, count - len(lost), count, f"{len(lost)} lost: {words}" if lost else "")

    return lambda facts: [judge(program, known, facts) for program, known in readers.items()]


def _lost(module: Module, known: Sequence[tuple[Style, str]], facts: LoraFacts) -> str:
    if module.name is None:
        return "no base has it"
    if module.key in facts.faults:
        return WORDS[facts.faults[module.key]]
    if not any(module.style == style and module.key.startswith(start) for style, start in known):
        return "it does not know such names"
    if facts.alpha_in_header:
        return "it ignores the alpha in the header and uses the rank instead"
    return "it does not read DoRA" if facts.dora else ""
