"""Records as the network takes them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.families import Cond, Family
from spinlite.pictures import fit, open_picture
from spinlite.store import Store, fingerprint

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (done, of)


class Encoded:
    """Records as the network takes them: latents and conditioning, in stores, made where they are missing."""

    def __init__(
        self, family: Family, records: Sequence[Record], cache: Path, batch: int, progress: Progress, background: str = "white"
    ) -> None:
        """Encode what is missing, `batch` at once; transparency is laid on `background`."""
        self._pictures = Store(cache / "real" / fingerprint(family.base_hash, family.size, background))
        self._prompts = Store(cache / "prompt" / fingerprint(family.base_hash))
        paths = {r.key: r.path for r in records} | {r.lose_key: r.lose for r in records if r.lose}
        texts = {_prompt_key(text): text for text in ["", *(r.caption for r in records)]}
        pictures = [(key, path) for key, path in paths.items() if key not in self._pictures]
        prompts = [(key, text) for key, text in texts.items() if key not in self._prompts]
        done, total = 0, len(pictures) + len(prompts)
        for chunk in chunks(pictures, batch):
            fitted = [fit(open_picture(path, background=background), family.size) for _, path in chunk]
            self._pictures.add([key for key, _ in chunk], _finite(family.encode(fitted), [path for _, path in chunk]))
            progress(done := done + len(chunk), total)
        for chunk in chunks(prompts, batch):
            self._prompts.add([key for key, _ in chunk], family.prompt([text for _, text in chunk]))
            progress(done := done + len(chunk), total)
        family.free()

    def real(self, records: Sequence[Record]) -> Tensor:
        """Their latents, (B, ...)."""
        return self._pictures.get([r.key for r in records])["x0"]

    def lose(self, records: Sequence[Record]) -> Tensor:
        """The latents of the pictures they were preferred to, (B, ...)."""
        return self._pictures.get([r.lose_key for r in records])["x0"]

    def cond(self, records: Sequence[Record], dropped: Sequence[bool] | None = None) -> Cond:
        """Their conditioning; where `dropped`, that of the empty caption."""
        flags = dropped or [False] * len(records)
        texts = ["" if flag else r.caption for r, flag in zip(records, flags, strict=True)]
        picture = self._pictures.get([r.key for r in records])
        del picture["x0"]
        return self._prompts.get([_prompt_key(text) for text in texts]) | picture


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of at most `size` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _finite(encoded: dict[str, Tensor], paths: Sequence[Path]) -> dict[str, Tensor]:
    for row, path in zip(encoded["x0"], paths, strict=True):
        if not torch.isfinite(row).all():
            raise SpinliteError(
                f"{path.name} encodes to NaN: the VAE overflows", fix="set model.vae to another VAE of the same kind"
            )
    return encoded


def _prompt_key(text: str) -> str:
    return fingerprint(text)
