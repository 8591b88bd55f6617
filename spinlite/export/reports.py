"""The reports that `inspect` makes of LoRA and checkpoint files."""

from dataclasses import dataclass

from spinlite.families.lora_facts import Verdict


@dataclass(frozen=True)
class Block:
    """A level of the network, or a text encoder: how many modules the LoRA changes there, and how much (Frobenius norm)."""

    name: str
    modules: int
    norm: float


@dataclass(frozen=True)
class LoraReport:
    """A LoRA file. `rank`, `alpha` and `base` are in words; `notes` say what is wrong or unusual."""

    file: str
    size: int  # bytes
    what: str  # "LoRA", "DoRA", "LoHa", …
    base: str
    layout: str
    modules: dict[str, int]  # number of modules by part of the model
    rank: str
    alpha: str
    precision: str
    prediction: str
    blocks: list[Block]
    programs: list[Verdict]
    hash: str  # SHA-256 of the data, by which programs identify the file
    notes: list[str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint: its tensors, the numbers in them, and their precision."""

    name: str
    tensors: int
    parameters: int
    precision: str


@dataclass(frozen=True)
class ModelReport:
    """A checkpoint. `use` says whether spinlite can train on it, or why not."""

    file: str
    size: int  # bytes
    what: str
    prediction: str
    zero_snr: bool
    parts: list[Part]
    hash: str  # SHA-256 of the file; A1111 shows the first 10 digits
    use: str
    metadata: dict[str, str]
