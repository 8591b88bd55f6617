"""Flow models in the original layout: where a module's weight is in a file, and a whole network under the names there.

The other direction is in `flow_files`.
"""

from collections.abc import Container

import torch
from torch import Tensor

from spinlite.families.checkpoint import Checkpoint
from spinlite.families.flow_kinds import PREFIXES
from spinlite.families.kinds import KINDS
from spinlite.families.record import Kind, Place


def find_places(name: str, kind: Kind, keys: Container[str]) -> list[Place]:
    """Where a module of the network, by its full name, is in a file with these keys: nowhere or once."""
    files = KINDS[kind].files
    assert files
    place = files.native(f"{name.removeprefix('unet.')}.weight")
    return [Place(f"{prefix}{place.key}", place.third) for prefix in PREFIXES if f"{prefix}{place.key}" in keys][:1]


def single_file_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """A diffusers model's network under the names of its original layout, with the parts that are in the same file there."""
    record = KINDS[checkpoint.kind]
    assert record.files
    found = original_tensors(checkpoint.kind, checkpoint.load(record.net, dtype).state_dict())
    for part, start in record.files.inside.items():
        found |= {f"{start}{key}": value for key, value in checkpoint.load(part, dtype).state_dict().items()}
    return found


def original_tensors(kind: Kind, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network by diffusers' names -> by those of the original layout."""
    files = KINDS[kind].files
    assert files
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, value in weights.items():
        place = files.native(name)
        if place.third is not None:
            thirds.setdefault(place.key, {})[place.third] = value
        else:
            found[place.key] = torch.cat(value.chunk(2)[::-1]) if name in files.swapped else value
    return found | {key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()}
