"""What is wrong with single modules of a LoRA file, whatever its layout."""

import math
from collections.abc import Mapping
from typing import Literal

from spinlite.lora.file import LoraFile
from spinlite.lora.numbers import Stored

Fault = Literal["broken", "no up", "no down", "unfit", "alpha 0", "tucker"]
WORDS: dict[Fault, str] = {
    "broken": "broken numbers (NaN, infinite or none)",
    "no up": "the up matrix is missing",
    "no down": "the down matrix is missing",
    "unfit": "matrices that do not fit each other",
    "alpha 0": "alpha 0, which applies nothing",
    "tucker": "it does not know lora_mid",  # a form that is right, but not read everywhere
}


def find_faults(file: LoraFile) -> dict[str, Fault]:
    """The first fault of each module that has one, by the module's name in the file."""
    return {file.written[name]: fault for name, parts in file.parts.items() if (fault := _fault(parts))}


def _fault(parts: Mapping[str, Stored]) -> Fault | None:
    if not all(stored.is_whole for stored in parts.values()):
        return "broken"
    if "up" not in parts or "down" not in parts:
        return "no down" if "up" in parts else "no up"
    down, up = parts["down"].shape, parts["up"].shape
    if not (len(up) in (2, 4) and len(down) in (2, 4) and math.prod(up[1:]) == down[0]):
        return "unfit"
    if "alpha" in parts and math.prod(parts["alpha"].shape) == 1 and not parts["alpha"].numbers().any():
        return "alpha 0"
    return "tucker" if "mid" in parts else None
