"""From a LoRA file to the pairs of matrices that a base model learns and computes with."""

from pathlib import Path

import torch

from spinlite.lora.file import LoraFile, open_lora
from spinlite.lora.match import Names, Shapes, matrices_for
from spinlite.lora.numbers import Matrices
from spinlite.lora.tensors import Lora, Pair


def read_lora_for(path: Path, names: Names, shapes: Shapes, base: str, text_alone: bool = False) -> dict[str, Pair]:
    """Read a LoRA file for a base model: full name -> change. Arguments and errors are those of `match.matrices_for`."""
    changes = matrices_for(open_lora(path), names, shapes, base, text_alone)
    return {name: _pair(change) for name, change in changes.items()}


def read_pairs(file: LoraFile) -> dict[str, Pair]:
    """Every module's change by its name in `file.parts`. Raises SpinliteError as `LoraFile.matrices` does."""
    return {name: _pair(file.matrices(name)) for name in file.parts}


def text_encoder_part(lora: Lora) -> dict[str, Pair]:
    """The part of a LoRA that changes text encoders."""
    return {name: pair for name, pair in lora.items() if not name.startswith("unet.")}


def _pair(change: Matrices) -> Pair:
    return Pair(torch.from_numpy(change.down), torch.from_numpy(change.up))
