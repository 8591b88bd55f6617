"""Lets networks look at what was drawn, one network in memory at a time. What they saw is kept on disk.

It is kept by the picture's contents and its prompt: the same picture has the same scores, whoever drew it.
"""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from spinlite.data.groups import chunks
from spinlite.data.pictures import open_picture
from spinlite.evaluate.scorer import Looks, Network, Seen
from spinlite.evaluate.weights import Weights
from spinlite.progress import Progress, Watch
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store

BATCH = 32  # pictures that a network looks at together


@dataclass(frozen=True)
class Shown:
    """Pictures with their prompts: rows of one length, one for each seed."""

    files: Sequence[Sequence[Path]]
    prompts: Sequence[str]


def look_at(network: Network, shown: Mapping[str, Shown], weights: Weights, folder: Path, watch: Watch) -> dict[str, Seen]:
    """What a network sees of pictures, by the name of their group: {name: (prompts, seeds, ...)}.

    The network is loaded if something is missing in `folder`, and leaves memory when this returns.
    """
    store = Store(folder / fingerprint(network.name, weights.identity(network.name)))
    keys = {name: [[_key(file, text) for file, text in zip(row, group.prompts, strict=True)] for row in group.files]
            for name, group in shown.items()}  # fmt: skip
    order = [(key, file, text) for name, group in shown.items() for row, files in zip(keys[name], group.files, strict=True)
             for key, file, text in zip(row, files, group.prompts, strict=True)]  # fmt: skip
    missing = list({key: (key, file, text) for key, file, text in order if key not in store}.values())
    if missing:
        with watch.phase(f"score · {network.name}", len(missing)) as progress:
            _look(network.load(weights), missing, store, progress)
        free_memory()
    return {name: _stacked([store.get(row) for row in rows]) for name, rows in keys.items()}


def free_memory() -> None:
    """Give back the memory of networks that nothing refers to any more."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()


def _look(looks: Looks, missing: Sequence[tuple[str, Path, str]], store: Store, progress: Progress) -> None:
    done = 0
    with store:
        for some in chunks(missing, BATCH):
            pictures: list[Image.Image] = [open_picture(file) for _, file, _ in some]
            store.add([key for key, _, _ in some], looks(pictures, [text for _, _, text in some]))
            done += len(some)
            progress(done, len(missing))


def _key(file: Path, prompt: str) -> str:
    with file.open("rb") as content:
        return fingerprint(hashlib.file_digest(content, "sha256").hexdigest(), prompt)


def _stacked(rows: Sequence[Seen]) -> Seen:
    return {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
