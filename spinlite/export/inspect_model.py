"""Finds out what a checkpoint is, from its keys, shapes and header. Its weights are hashed, but not loaded."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from spinlite.errors import SpinliteError
from spinlite.export.precision import describe_precision
from spinlite.export.reports import ModelReport, Part
from spinlite.families.kinds import KINDS
from spinlite.families.recognise import name_other_model
from spinlite.families.single_file import SingleFile, part_of, read_header


def report_model(path: Path) -> ModelReport:
    """Report on a file that is not a LoRA. Raises SpinliteError if it can't be read."""
    keys, metadata = read_header(path)
    prediction, zero = "not stated", False
    try:
        checkpoint = SingleFile(path)
        what, zero = f"{KINDS[checkpoint.kind].title} checkpoint, original layout", bool(checkpoint.zero_snr)
        if checkpoint.predictions:
            prediction = ", ".join(f"{value} (by {where})" for where, value in checkpoint.predictions.items())
        use = f"can be trained on: --set model.base={json.dumps(str(path))}"
    except SpinliteError as error:
        what, other = error.problem.removeprefix(f"{path.name} "), name_other_model(keys)
        if other and other not in what:
            what += f": it belongs to {other}"
        use = f"can not be trained on: {error.fix}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelReport(path.name, path.stat().st_size, what, prediction, zero, _parts(path, keys), digest, use, dict(metadata))


def _parts(path: Path, keys: Mapping[str, tuple[int, ...]]) -> list[Part]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(part_of(key), []).append(key)
    return [
        Part(name, len(group), sum(math.prod(keys[key]) for key in group), describe_precision(path, group))
        for name, group in sorted(groups.items())
    ]
