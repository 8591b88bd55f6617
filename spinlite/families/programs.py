"""Which programs load a LoRA file for Stable Diffusion, and which parts they ignore, by the rules of their own loaders.

The rules were read in the programs' sources of 2025 and 2026 and tried on their key-mapping code, on files of SD 1.5 and SDXL
in a dozen layouts; the counts are in `tests/export/test_inspect.py`. SD 2.x was not tried and is treated like SD 1.x.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from spinlite.families.faults import WORDS, Fault
from spinlite.families.lora_facts import LoraFacts, Module, Verdict

TOP = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.", "unet.add_embedding.")
UPSAMPLER = "unet.up_blocks.0.upsamplers.0.conv"
KOHYA = ("blocks", "original", "text")
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
HALVES: set[Fault] = {"no up", "no down"}
REFUSED: dict[str, set[Fault]] = {  # faults of one module at which a program refuses the file; at others it loses the module
    "A1111 1.10": HALVES, "ComfyUI, SwarmUI": {"no down"}, "reForge": {"no down"}, "Forge": {"no down"}, "SD.Next": set(),
    "InvokeAI": {*HALVES, "unfit"}, "sd-scripts": {"unfit", "tucker"}, "diffusers": {*HALVES, "unfit", "tucker"},
}  # fmt: skip
READ: dict[Fault, set[str]] = {  # programs that read a module as it is meant in spite of its fault
    "alpha 0": {"sd-scripts"},  # as the rank
    "tucker": {"A1111 1.10", "ComfyUI, SwarmUI", "reForge", "Forge", "SD.Next", "InvokeAI"},
}
LEFT = 12  # keys that Forge may leave unused before it refuses the file


Lost = Callable[[Module, LoraFacts], str]  # why a module does not work as it should; "" if it does
Refused = Callable[[LoraFacts, Sequence[str]], str]  # why the whole file does nothing, given why each module is lost


def verdicts(facts: LoraFacts) -> list[Verdict]:
    """What each program does with the file."""
    return [_judge_program(name, facts, lost, refused) for name, (lost, refused) in PROGRAMS.items()]


def _judge_program(program: str, facts: LoraFacts, lost: Lost, refused: Refused) -> Verdict:
    why = [("no base has it" if m.name is None else lost(m, facts)) for m in facts.modules]
    if refusal := "broken" in facts.faults.values() and WORDS["broken"]:
        return Verdict(program, 0, len(why), f"{refusal}: its pictures come out black")
    for i, m in enumerate(facts.modules):
        fault = facts.faults.get(m.key)
        if fault and not why[i] and program not in READ.get(fault, ()):
            if fault in REFUSED[program]:
                return Verdict(program, 0, len(why), f"refuses the file: {WORDS[fault]} in {m.key}")
            why[i] = WORDS[fault]
    if refusal := refused(facts, why):
        return Verdict(program, 0, len(why), refusal)
    counts = Counter(reason for reason in why if reason)
    words = "; ".join(reason if count == len(why) else f"{count} lost: {reason}" for reason, count in counts.most_common())
    return Verdict(program, len(why) - counts.total(), len(why), words)


def _lacks_text_model(m: Module) -> bool:
    """Whether a text encoder's key lacks the `text_model` level of older transformers."""
    return m.is_text_encoder and "text_model" not in m.key


def _not_kohya(m: Module) -> str:
    return "" if m.style in KOHYA else "it does not know diffusers' dotted names"


def _lost_in_a1111(m: Module, facts: LoraFacts) -> str:
    if reason := _not_kohya(m):
        return reason
    if _lacks_text_model(m):
        return "text encoder keys without text_model"
    if facts.xl and m.style == "blocks" and (m.name == UPSAMPLER or (m.name or "").startswith("unet.add_embedding.")):
        return "it mistakes diffusers' name of this block for another block"
    name = m.name or ""
    if name.startswith("text_encoder_2.") and ".self_attn." in name:
        stem = name.rpartition(".")[0]
        if not facts.names >= {f"{stem}.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj")}:
            return "the second text encoder's attention is applied only where q, k, v and out are all there"
    return "DoRA is read along the other axis" if facts.dora else ""


def _hidden_by_webui(facts: LoraFacts, why: Sequence[str]) -> str:
    version = facts.metadata.get("ss_base_model_version", "")
    if not all(why) and facts.xl and facts.metadata and not version.startswith("sdxl_"):
        return "not shown while an SDXL model is loaded: the header lacks ss_base_model_version = sdxl_base_v1-0"
    return ""


def _lost_in_comfyui(m: Module, facts: LoraFacts) -> str:
    if m.style == "numbered":
        return "it does not know numbered modules"
    if m.style == "peft":
        return "it does not know peft's own names"
    if m.style == "ldm" and not m.key.startswith(("diffusion_model.", "text_encoders.")):
        return "original names without diffusion_model."
    if m.style == "dotted" and not m.is_text_encoder and (m.name or "").endswith(ATTENTION):
        return "attention under diffusers' dotted names"
    if _lacks_text_model(m):
        return "text encoder keys without text_model"
    if facts.alpha_in_header:
        return "it ignores the alpha in the header and uses the rank instead"
    return "DoRA is read along the other axis" if facts.dora else ""


def _lost_in_forge(m: Module, facts: LoraFacts) -> str:
    if m.style == "ldm" and not m.key.startswith("diffusion_model."):
        return "it does not know ComfyUI's names of text encoders"
    return _lost_in_comfyui(m, facts)


def _refused_by_forge(facts: LoraFacts, why: Sequence[str]) -> str:
    left = 3 * sum(bool(reason) and "DoRA" not in reason and "rank" not in reason for reason in why) + len(facts.foreign)
    return f"refuses the file: {left} keys are left over" if left > LEFT else ""


def _lost_in_sdnext(m: Module, facts: LoraFacts) -> str:
    if reason := _not_kohya(m):
        return reason
    if not facts.xl and m.key.startswith(("lora_te1_", "lora_te2_")):
        return "text encoder as lora_te1_ in a file for SD 1.x"
    if not facts.xl and m.style == "original" and m.name == UPSAMPLER:
        return "its table has another original name for this block"
    return ""


def _lost_in_invoke(m: Module, facts: LoraFacts) -> str:
    if reason := _wrong_names_for_sd1(m, facts):
        return reason
    if _lacks_text_model(m):
        return "text encoder keys without text_model"
    return "DoRA is read along the other axis" if facts.dora else ""


def _refused_by_invoke(facts: LoraFacts, why: Sequence[str]) -> str:
    if any(m.style not in (*KOHYA, "unknown") for m in facts.modules):
        return "does not recognise the file"
    styles = {m.style for m in facts.modules}
    if facts.xl and {"blocks", "original"} <= styles:
        return "refuses the file: it mixes both styles of block names"
    if facts.xl and facts.foreign:
        return f"refuses the file: it has keys that do not belong to a LoRA, e.g. {facts.foreign[0]}"
    ends = {name.rpartition(".")[2] if "attn2" not in name else "attn2." + name.rpartition(".")[2] for name in facts.names}
    if not facts.xl and not ends & {"attn2.to_k", "attn2.to_v"}:
        if "time_emb_proj" in ends:
            return "takes it for SDXL, because it has time_emb_proj and no cross-attention"
        if not any(".self_attn." in name for name in facts.names):
            return "does not recognise the file: it has neither cross-attention nor a text encoder"
    return ""


def _wrong_names_for_sd1(m: Module, facts: LoraFacts) -> str:
    if reason := _not_kohya(m):
        return reason
    if not facts.xl and m.style == "original":
        return "original block names in a file for SD 1.x"
    if not facts.xl and m.key.startswith(("lora_te1_", "lora_te2_")):
        return "text encoder as lora_te1_ in a file for SD 1.x"
    return ""


def _lost_in_sdscripts(m: Module, facts: LoraFacts) -> str:
    if reason := _wrong_names_for_sd1(m, facts):
        return reason
    if (m.name or "").startswith(TOP):
        return "it never applies LoRA to conv_in, conv_out and the embeddings of time and size"
    if _lacks_text_model(m):
        return "text encoder keys without text_model"
    return "it does not support DoRA" if facts.dora else ""


def _lost_in_diffusers(m: Module, facts: LoraFacts) -> str:
    if m.style == "numbered":
        return "it does not know numbered modules"
    if m.style == "peft":
        return "it does not know peft's own names"
    if m.style == "ldm":
        return "it does not know ComfyUI's names"
    if m.style in ("dotted", "processor") and not m.key.startswith(("unet.", "text_encoder")):
        return "names without unet."
    if m.style == "original" and not facts.xl and not (m.name or "").startswith(TOP):
        return "original block names in a file for SD 1.x"
    if m.style == "blocks" and (m.name or "").startswith("unet.add_embedding."):
        return "diffusers' name of this layer in kohya's layout"
    if facts.dora and m.style in KOHYA:
        return "it ignores the magnitudes of a DoRA"
    most = Counter(facts.alphas.values()).most_common(1)
    mixed = m.is_text_encoder or (m.name or "").endswith(ATTENTION)
    if most and mixed and facts.alphas.get(m.key) not in (None, most[0][0]):
        return "alphas differ between modules, and it gives attention the most frequent one"
    return ""


def _refused_by_diffusers(facts: LoraFacts, why: Sequence[str]) -> str:
    if facts.foreign:
        return f"refuses the file: it has keys that do not belong to a LoRA, e.g. {facts.foreign[0]}"
    if any(m.key in facts.alphas and m.style not in KOHYA for m in facts.modules) and not all(why):
        return "refuses the file: it has alphas beside dotted names"
    if facts.alphas and "lora_adapter_metadata" in facts.metadata:
        return "refuses the file: it has alphas both as tensors and in the header"
    styles = {m.style for m in facts.modules}
    if "original" in styles and not facts.xl and any(m.is_text_encoder for m in facts.modules):
        return "refuses the file: original block names in a file for SD 1.x"
    return ""


def _never_refused(facts: LoraFacts, why: Sequence[str]) -> str:
    return ""


PROGRAMS: dict[str, tuple[Lost, Refused]] = {
    "A1111 1.10": (_lost_in_a1111, _hidden_by_webui),
    "ComfyUI, SwarmUI": (_lost_in_comfyui, _never_refused),
    "reForge": (_lost_in_comfyui, _hidden_by_webui),
    "Forge": (_lost_in_forge, _refused_by_forge),
    "SD.Next": (_lost_in_sdnext, _never_refused),
    "InvokeAI": (_lost_in_invoke, _refused_by_invoke),
    "sd-scripts": (_lost_in_sdscripts, _never_refused),
    "diffusers": (_lost_in_diffusers, _refused_by_diffusers),
}
