"""What is known of a LoRA file before it is judged: its modules and a few facts, and the verdict of one program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spinlite.families.faults import Fault

# How a file names a module: kohya's keys with diffusers' blocks ("blocks"), with the original ones, or of a text encoder;
# diffusers' dotted names, its older names with attention processors, peft's own names; dotted original names, as ComfyUI's;
# cloneofsimo's numbers; those of AnimateDiff's motion LoRAs
Style = Literal["blocks", "original", "text", "dotted", "processor", "peft", "ldm", "numbered", "motion", "unknown"]


@dataclass(frozen=True)
class Module:
    """A module that a file changes: its key there, and its full name in the base; None if no known base has it."""

    key: str
    style: Style
    name: str | None
    fits: bool  # it has the published model's shape

    @property
    def is_text_encoder(self) -> bool:
        """Whether it belongs to a text encoder."""
        return (self.name or self.key).startswith(("text_encoder", "lora_te"))


@dataclass(frozen=True)
class LoraFacts:
    """What the rules of programs look at in a LoRA file."""

    kind: str  # of the base that it is for
    modules: Sequence[Module]
    alphas: Mapping[str, float]  # by key, for modules with an alpha tensor
    alpha_in_header: bool  # alpha differs from the rank, and only the header says so
    dora: bool
    foreign: Sequence[str]  # keys that do not belong to a LoRA
    metadata: Mapping[str, str]
    faults: Mapping[str, Fault]  # by key

    @property
    def xl(self) -> bool:
        return self.kind == "sdxl"

    @property
    def names(self) -> set[str]:
        return {m.name for m in self.modules if m.name}


@dataclass(frozen=True)
class Verdict:
    """What one program does with a file: how many of its modules work as they should, and why the others do not."""

    program: str
    right: int
    of: int
    why: str
