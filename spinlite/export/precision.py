"""The precisions of a file's tensors, in words."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

NAMES = {"F16": "fp16", "F32": "fp32", "F64": "fp64"}


def describe_precision(path: Path, keys: Iterable[str] | None = None) -> str:
    """The precisions of a file's tensors, or of some of them, the most frequent first: "fp16, fp32"."""
    with safe_open(path, "np") as file:
        kinds = Counter(file.get_slice(key).get_dtype() for key in keys or file.keys())
    return ", ".join(NAMES.get(str(kind), str(kind).lower()) for kind, _ in kinds.most_common())
