"""Which programs load a LoRA file for Stable Diffusion, and what they drop: by the rules of their own loaders.

The rules were read in the programs' sources of 2025 and 2026 and tried on their key-mapping code, on files of SD 1.5 and SDXL
in a dozen layouts; the counts are in `tests/test_inspect.py`. SD 2.x was not tried: it is taken as SD 1.x.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spinlite.families.checkpoint import Kind
from spinlite.families.recognise import Module

TOP = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.", "unet.add_embedding.")
UPSAMPLER = "unet.up_blocks.0.upsamplers.0.conv"
KOHYA = ("blocks", "original", "text")
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
FOUR = ("q_proj", "k_proj", "v_proj", "out_proj")
LEFT = 12  # keys that Forge may have left over


@dataclass(frozen=True)
class LoraFacts:
    """What the rules go by."""

    kind: Kind
    modules: Sequence[Module]
    alphas: Mapping[str, float]  # by key, where the file has a tensor of it
    headed: bool  # the header alone says that alpha is not the rank
    dora: bool
    foreign: Sequence[str]  # keys of something else
    metadata: Mapping[str, str]

    @property
    def xl(self) -> bool:
        return self.kind == "sdxl"

    @property
    def known(self) -> set[str]:
        return {m.name for m in self.modules if m.name}


@dataclass(frozen=True)
class Verdict:
    """What one program does with a file: how many of its modules act as they should, and why not the others."""

    program: str
    right: int
    of: int
    why: str


Lost = Callable[[Module, LoraFacts], str]  # why a module does not act as it should; "" where it does
Refused = Callable[[LoraFacts, Sequence[str]], str]  # why the whole file does nothing, given why modules are lost


def verdicts(facts: LoraFacts) -> list[Verdict]:
    """What each program does with the file."""
    return [_verdict(name, facts, lost, refused) for name, (lost, refused) in PROGRAMS.items()]


def _verdict(program: str, facts: LoraFacts, lost: Lost, refused: Refused) -> Verdict:
    why = [("no base has it" if m.name is None else lost(m, facts)) for m in facts.modules]
    if said := refused(facts, why):
        return Verdict(program, 0, len(why), said)
    counts = Counter(reason for reason in why if reason)
    words = "; ".join(reason if count == len(why) else f"{count} lost: {reason}" for reason, count in counts.most_common())
    return Verdict(program, len(why) - counts.total(), len(why), words)


def _flat(m: Module) -> bool:
    """A text encoder's module without transformers' old `text_model` level."""
    return m.text and "text_model" not in m.key


def _not_kohya(m: Module) -> str:
    return "" if m.style in KOHYA else "it does not know diffusers' dotted names"


def _a1111(m: Module, facts: LoraFacts) -> str:
    if said := _not_kohya(m):
        return said
    if _flat(m):
        return "text encoder's names without text_model"
    if facts.xl and m.style == "blocks" and (m.name == UPSAMPLER or (m.name or "").startswith("unet.add_embedding.")):
        return "it takes diffusers' name of this block for another"
    name = m.name or ""
    if name.startswith("text_encoder_2.") and ".self_attn." in name:
        stem = name.rpartition(".")[0]
        if not facts.known >= {f"{stem}.{leaf}" for leaf in FOUR}:
            return "the second text encoder's attention is applied only where q, k, v and out are all there"
    return "DoRA is read along the other axis" if facts.dora else ""


def _hidden(facts: LoraFacts, why: Sequence[str]) -> str:
    version = facts.metadata.get("ss_base_model_version", "")
    if not all(why) and facts.xl and facts.metadata and not version.startswith("sdxl_"):
        return "not shown while an SDXL model is loaded: the header lacks ss_base_model_version = sdxl_base_v1-0"
    return ""


def _comfy(m: Module, facts: LoraFacts) -> str:
    if m.style == "numbered":
        return "it does not know numbered modules"
    if m.style == "peft":
        return "it does not know peft's own names"
    if m.style == "dotted" and not m.text and (m.name or "").endswith(ATTENTION):
        return "attention under diffusers' dotted names"
    if _flat(m):
        return "text encoder's names without text_model"
    if facts.headed:
        return "it takes the rank for alpha, which the header says otherwise"
    return "DoRA is read along the other axis" if facts.dora else ""


def _too_many_left(facts: LoraFacts, why: Sequence[str]) -> str:
    left = 3 * sum(bool(reason) and "DoRA" not in reason and "rank" not in reason for reason in why) + len(facts.foreign)
    return f"refuses the file: {left} keys are left over" if left > LEFT else ""


def _sdnext(m: Module, facts: LoraFacts) -> str:
    if said := _not_kohya(m):
        return said
    if not facts.xl and m.key.startswith(("lora_te1_", "lora_te2_")):
        return "text encoder as lora_te1_ in a file for SD 1.x"
    if not facts.xl and m.style == "original" and m.name == UPSAMPLER:
        return "the original name of this block is another in its table"
    return ""


def _invoke(m: Module, facts: LoraFacts) -> str:
    if said := _sd1_names(m, facts):
        return said
    if _flat(m):
        return "text encoder's names without text_model"
    return "DoRA is read along the other axis" if facts.dora else ""


def _unrecognised(facts: LoraFacts, why: Sequence[str]) -> str:
    if any(m.style not in (*KOHYA, "unknown") for m in facts.modules):
        return "does not recognise the file"
    styles = {m.style for m in facts.modules}
    if facts.xl and {"blocks", "original"} <= styles:
        return "refuses the file: both styles of block names in it"
    if facts.xl and facts.foreign:
        return f"refuses the file: keys of something else, e.g. {facts.foreign[0]}"
    told = {name.rpartition(".")[2] if "attn2" not in name else "attn2." + name.rpartition(".")[2] for name in facts.known}
    if not facts.xl and not told & {"attn2.to_k", "attn2.to_v"}:
        if "time_emb_proj" in told:
            return "takes it for SDXL: it goes by time_emb_proj where cross-attention is not in the file"
        if not any(".self_attn." in name for name in facts.known):
            return "does not recognise the file: neither cross-attention nor a text encoder in it"
    return ""


def _sd1_names(m: Module, facts: LoraFacts) -> str:
    if said := _not_kohya(m):
        return said
    if not facts.xl and m.style == "original":
        return "original block names in a file for SD 1.x"
    if not facts.xl and m.key.startswith(("lora_te1_", "lora_te2_")):
        return "text encoder as lora_te1_ in a file for SD 1.x"
    return ""


def _sdscripts(m: Module, facts: LoraFacts) -> str:
    if said := _sd1_names(m, facts):
        return said
    if (m.name or "").startswith(TOP):
        return "it never applies conv_in, conv_out and the embeddings of time and size"
    if _flat(m):
        return "text encoder's names without text_model"
    return "it reads no DoRA" if facts.dora else ""


def _diffusers(m: Module, facts: LoraFacts) -> str:
    if m.style == "numbered":
        return "it does not know numbered modules"
    if m.style == "peft":
        return "it does not know peft's own names"
    if m.style == "original" and not facts.xl and not (m.name or "").startswith(TOP):
        return "original block names in a file for SD 1.x"
    if m.style == "blocks" and (m.name or "").startswith("unet.add_embedding."):
        return "diffusers' name of this layer in kohya's layout"
    if facts.dora and m.style in KOHYA:
        return "it drops the magnitudes of a DoRA"
    most = Counter(facts.alphas.values()).most_common(1)
    mixed = m.text or (m.name or "").endswith(ATTENTION)
    if most and mixed and facts.alphas.get(m.key) not in (None, most[0][0]):
        return "alphas differ between modules, and attention gets the most frequent one"
    return ""


def _invalid(facts: LoraFacts, why: Sequence[str]) -> str:
    if facts.foreign:
        return f"refuses the file: keys of something else, e.g. {facts.foreign[0]}"
    if facts.alphas and "lora_adapter_metadata" in facts.metadata:
        return "refuses the file: alphas both as tensors and in the header"
    styles = {m.style for m in facts.modules}
    if "original" in styles and not facts.xl and any(m.text for m in facts.modules):
        return "refuses the file: original block names in a file for SD 1.x"
    return ""


def _never(facts: LoraFacts, why: Sequence[str]) -> str:
    return ""


PROGRAMS: dict[str, tuple[Lost, Refused]] = {
    "A1111 1.10": (_a1111, _hidden),
    "ComfyUI, SwarmUI": (_comfy, _never),
    "reForge": (_comfy, _hidden),
    "Forge": (_comfy, _too_many_left),
    "SD.Next": (_sdnext, _never),
    "InvokeAI": (_invoke, _unrecognised),
    "sd-scripts": (_sdscripts, _never),
    "diffusers": (_diffusers, _invalid),
}
