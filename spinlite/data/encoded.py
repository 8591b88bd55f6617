"""Encodes pictures and captions once, and keeps the latents and conditioning on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spinlite.config.settings import Data
from spinlite.data.buckets import Shape, crop_centre
from spinlite.data.groups import chunks, group_by_shape
from spinlite.data.items import Item, Waiting, latent_name
from spinlite.data.loading import load
from spinlite.data.looks import WORKERS, in_order
from spinlite.data.mask_pixels import fit_mask, load_mask
from spinlite.data.pictures import silence_pillow
from spinlite.data.records import Record, list_names
from spinlite.errors import SpinliteError
from spinlite.families.family import Cond, Family
from spinlite.memory import processes
from spinlite.progress import Progress
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store

CLIPS_AHEAD = 2  # threads that read clips: each clip that waits takes as much memory as its frames


class Encoded:
    """Latents and conditioning of records, kept in stores on disk; what is missing there is encoded.

    A picture is kept under the hash of its file's bytes, its shape and whether it is mirrored, in a store named by the VAE and
    the settings for pixels; beside it its mask, under the hash of the mask's file too. A caption is kept under its own hash and
    its number of chunks, in a store named by the text encoders.

    faults:  why pictures could not be encoded, by their keys; `usable` leaves their records out
    changed: names of files that changed since their records were made; the folder has to be read again
    chunks:  how many chunks of tokens every caption is encoded in: as many as the longest one needs
    """

    def __init__(
        self, family: Family, records: Sequence[Record], cache: Path, batch: int, progress: Progress,
        settings: Data | None = None, others: Sequence[Record] = (),
    ) -> None:  # fmt: skip
        """Encode what is missing, `batch` pictures at a time; the pictures of `others` too, which may have another's bucket.

        Raises SpinliteError if more than the share `max_unusable` of the pictures can't be encoded; the rest stays on disk.
        """
        self._settings = settings = settings or Data()
        self.flip, self._own = settings.flip, family.size
        rules = [settings.background, settings.crop, settings.latents]
        self._pictures = Store(cache / "real" / fingerprint(family.picture_hash, rules))
        self._prompts = Store(cache / "prompt" / fingerprint(family.caption_hash))
        self.faults: dict[str, str] = {}
        self.changed: list[str] = []
        items = {(item.key, item.shape): item for r in (*records, *others) for item in self._items(r)}
        missing = processes.from_lead(lambda: [item for each in items.values() if (item := self._missing(each)).flips])
        captions = ["", *(text for r in records for text in (r.caption, *r.wordings))]
        self.chunks = family.count_chunks(list(dict.fromkeys(captions)))
        texts = {self._prompt_key(text): text for text in captions}
        prompts = processes.from_lead(lambda: [(key, text) for key, text in texts.items() if key not in self._prompts])
        masked = [r for r in {self._mask_names(r): r for r in records}.values() if not self._has(self._mask_names(r))]
        done, total = 0, len(missing) + len(masked) + len(prompts)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        pictures = len({item.key for item in items.values()})
        self._encode(family, missing, pictures, batch, advance)
        processes.from_lead(lambda: self._encode_masks(masked, pictures, advance))
        self.faults, self.changed = processes.from_lead(lambda: (self.faults, self.changed))
        self._encode_captions(family, prompts, batch, advance)
        family.free()

    @property
    def damaged(self) -> list[str]:
        """Files of the cache that were damaged; what they held was encoded again."""
        return self._pictures.damaged + self._prompts.damaged

    @property
    def captions(self) -> Store:
        """The conditioning of captions, by `caption_key`."""
        return self._prompts

    @property
    def folders(self) -> list[Path]:
        """Where latents and conditioning are kept."""
        return [self._pictures.folder, self._prompts.folder]

    def usable(self, records: Sequence[Record]) -> list[Record]:
        """The records with encoded pictures."""
        whole = [r for r in records if not any(self._missing(item).flips for item in self._items(r))]
        return [r for r in whole if self._has(self._mask_names(r))]

    def real(self, records: Sequence[Record], like: Sequence[Record] | None = None) -> Tensor:
        """Latents of the records' pictures, (B, ...), in their own shape, or in the shapes of the records `like`."""
        return self._get([r.key for r in records], like or records)["x0"]

    def rejected(self, records: Sequence[Record]) -> Tensor:
        """Latents of the rejected pictures of pairs, (B, ...)."""
        return self._get([r.lose_key for r in records], records)["x0"]

    def masks(self, records: Sequence[Record]) -> Tensor | None:
        """Masks of the records' pictures at the resolution of their latents, (B, 1, ...) in [0, 1]; None if none has one."""
        names = [self._mask_names(r)[r.flip] for r in records if r.mask]
        if not names:
            return None
        found = self._pictures.get(names)["mask"].clamp_min(self._settings.unmasked_weight)
        rows = iter(found)
        return torch.stack([next(rows) if r.mask else torch.ones_like(found[0]) for r in records])

    def cond(self, records: Sequence[Record], dropped: Sequence[bool] | None = None) -> Cond:
        """Conditioning of the records, as they are worded; where `dropped` is true, of the empty caption instead."""
        flags = dropped or [False] * len(records)
        texts = ["" if flag else r.wording or r.caption for r, flag in zip(records, flags, strict=True)]
        picture = self._get([r.key for r in records], records)
        del picture["x0"]
        return self._prompts.get([self._prompt_key(text) for text in texts]) | picture

    def _prompt_key(self, text: str) -> str:
        return caption_key(text, self.chunks)

    def _get(self, keys: Sequence[str], like: Sequence[Record]) -> dict[str, Tensor]:
        shapes = [r.bucket or self._own for r in like]
        return self._pictures.get([latent_name(k, s, r.flip) for k, s, r in zip(keys, shapes, like, strict=True)])

    def _items(self, record: Record) -> Iterator[Item]:
        sides = (record.path, record.key, record.clip), (record.lose, record.lose_key, record.lose_clip)
        for path, key, clip in sides:
            if path:
                yield Item(path, key, record.bucket or self._own, (False, True)[: 1 + self.flip], clip)

    def _mask_names(self, record: Record) -> tuple[str, ...]:
        """The names that the masks of a picture are kept under, one for each flip; () without a mask."""
        kind = "-alpha" if record.mask == record.path else f"-mask-{record.mask_key}"
        return tuple(name + kind for name in next(self._items(record)).names()) if record.mask else ()

    def _has(self, names: Sequence[str]) -> bool:
        return all(name in self._pictures for name in names)

    def _missing(self, item: Item) -> Item:
        """The item with only those flips that are not encoded yet."""
        return replace(item, flips=tuple(f for f, n in zip(item.flips, item.names(), strict=True) if n not in self._pictures))

    def _encode(self, family: Family, missing: Sequence[Item], total: int, batch: int, advance: Callable[[int], None]) -> None:
        """Encode pictures, those of one shape together, and keep the results without NaN."""

        def encode(some: Sequence[Waiting]) -> dict[str, Tensor]:
            names = [name for _, name, _ in some] if self._settings.latents == "sample" else None
            return family.encode_pictures([picture for *_, picture in some], names)

        with silence_pillow(), processes.writing(self._pictures, sum(len(item.flips) for item in missing)):
            for some, rows in processes.spread(self._decoded(missing, total, batch, advance), encode):
                self._add(some, rows, total)

    def _decoded(
        self, missing: Sequence[Item], total: int, batch: int, advance: Callable[[int], None]
    ) -> Iterator[Sequence[Waiting]]:
        """Pictures, `batch` of one shape at a time. Threads decode them while others are encoded."""
        order = [missing[i] for run in group_by_shape([item.shape for item in missing], len(missing)) for i in run]
        read, workers = partial(load, settings=self._settings), CLIPS_AHEAD if any(i.clip for i in order) else WORKERS
        waiting: list[Waiting] = []
        for place, loaded in enumerate(in_order(read, order, workers), 1):
            item = loaded.item
            if loaded.changed:
                self.changed.append(item.path.name)
            elif loaded.fault:
                self._fault(item, loaded.fault, total)
            waiting += [(item, name, picture) for name, picture in loaded.pictures.items()]
            last = place == len(order) or order[place].shape != item.shape
            while len(waiting) >= batch or (last and waiting):
                yield waiting[:batch]
                waiting = waiting[batch:]
            advance(1)

    def _encode_captions(
        self, family: Family, prompts: Sequence[tuple[str, str]], batch: int, advance: Callable[[int], None]
    ) -> None:
        """Encode captions, (key, text) each, `batch` at a time."""

        def encode(some: Sequence[tuple[str, str]]) -> Cond:
            return family.encode_captions([text for _, text in some], self.chunks)

        with processes.writing(self._prompts, len(prompts)):
            for chunk, rows in processes.spread(chunks(prompts, batch), encode):
                if processes.leads():
                    self._prompts.add([key for key, _ in chunk], rows)
                advance(len(chunk))

    def _encode_masks(self, masked: Sequence[Record], total: int, advance: Callable[[int], None]) -> None:
        """Keep the masks of encoded pictures, at the resolution of their latents."""
        latents: dict[Shape, Tensor] = {}  # one of each shape
        with silence_pillow(), self._pictures:
            for record, (mask, fault) in zip(masked, in_order(load_mask, masked), strict=True):
                item, names = next(self._items(record)), self._mask_names(record)
                if fault:
                    self._fault(item, fault, total)
                elif mask is None:
                    self.changed.append(record.mask.name if record.mask else "")
                elif self._has(item.names()):
                    if item.shape not in latents:
                        latents[item.shape] = self._pictures.get(item.names()[:1])["x0"][0]
                    centre = crop_centre(item.key, self._settings.crop)
                    rows = [fit_mask(mask, latents[item.shape], centre, flip) for flip in item.flips]
                    if rows[0].any():
                        self._pictures.add(names, {"mask": torch.stack(rows)})
                    else:
                        self._fault(item, "its mask is black, so nothing of it would be learned", total)
                advance(1)

    def _add(self, some: Sequence[Waiting], rows: dict[str, Tensor], total: int) -> None:
        """Keep the encoded pictures without NaN."""
        names, finite = [name for _, name, _ in some], [bool(torch.isfinite(row).all()) for row in rows["x0"]]
        kept = torch.tensor(finite)
        if processes.leads():
            self._pictures.add([n for n, ok in zip(names, finite, strict=True) if ok], {k: v[kept] for k, v in rows.items()})
        for (item, *_), ok in zip(some, finite, strict=True):
            if not ok:
                self._fault(item, "encodes to NaN (the VAE overflows: set model.vae to another of the same kind)", total)

    def _fault(self, item: Item, why: str, total: int) -> None:
        self.faults.setdefault(item.key, f"{item.path.name}: {why}")
        if len(self.faults) > self._settings.max_unusable * total:
            raise SpinliteError(
                f"{len(self.faults)} of {total} pictures can't be encoded: {list_names(list(self.faults.values()))}",
                fix="fix or remove them, or raise data.max_unusable",
            )


def caption_key(text: str, chunks: int) -> str:
    """The name that the conditioning of a caption in so many chunks is kept under."""
    return fingerprint(text, *[chunks] * (chunks > 1))
