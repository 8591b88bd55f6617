"""Draws what is judged: every model, for the same prompts and the same noise. What was drawn is kept.

The noise is a function of the prompt and the seed alone: the same for all models and samplers, so that differences are paired.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spinlite.config.settings import Play
from spinlite.data.encoded import Encoded
from spinlite.data.groups import chunks, group_by_shape
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.evaluate.prompts import Prompts
from spinlite.evaluate.studio import Artist, Studio
from spinlite.families.family import Cond, Family
from spinlite.memory.oom import Fallback
from spinlite.progress import Watch
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store
from spinlite.training.animation import strip
from spinlite.training.play import Conditions, fake_key, make_scheduler, play
from spinlite.training.sheet import write_png

GOOD_STEPS = 30
REALS = "real pictures, through the VAE"


@dataclass(frozen=True)
class Drawn:
    """A model's pictures, by one sampler: a row of files for each seed, a file in it for each prompt."""

    model: str
    sampler: str  # in words
    own: bool  # whether the run's fakes came from it
    files: Sequence[Sequence[Path]]


class Texts:
    """The conditioning of prompts without pictures, in place of `Encoded`. It is kept in the same store."""

    def __init__(self, base: Family, records: Sequence[Record], cache: Path, batch: int) -> None:
        self._store, self._shape = Store(cache / "prompt" / fingerprint(base.caption_hash)), base.latent_shape
        texts = list(dict.fromkeys(["", *(r.caption for r in records)]))
        self._chunks = base.count_chunks(texts)
        with self._store:
            for some in chunks([text for text in texts if self._key(text) not in self._store], batch):
                self._store.add([self._key(text) for text in some], base.encode_captions(some, self._chunks))
        base.free()

    @property
    def folders(self) -> list[Path]:
        """Where conditioning is kept."""
        return [self._store.folder]

    def real(self, records: Sequence[Record]) -> Tensor:
        """No picture: only its shape is asked for."""
        return torch.zeros(len(records), *self._shape)

    def cond(self, records: Sequence[Record], dropped: Sequence[bool] | None = None) -> Cond:
        """Conditioning of the prompts; where `dropped` is true, of the empty one instead."""
        flags = dropped or [False] * len(records)
        return self._store.get([self._key("" if flag else r.caption) for r, flag in zip(records, flags, strict=True)])

    def _key(self, text: str) -> str:
        return fingerprint(text, *[self._chunks] * (self._chunks > 1))


def draw(
    studio: Studio, prompts: Prompts, samplings: Sequence[tuple[Play, bool]], seeds: int, folder: Path, watch: Watch
) -> Iterator[Drawn]:
    """The pictures of a studio's artists by each sampler, below `folder`; of pictured prompts also the real ones.

    An interrupted call goes on where it stopped. Raises SpinliteError if the settings don't go together.
    """
    base, batch, records = studio.base, studio.device.levers.play_batch, prompts.records
    fallback = Fallback(studio.device, False, [], watch.say)
    with watch.phase("encode prompts", len(records)) as progress:
        encoded: Encoded | Texts = (
            Encoded(base, records, studio.cache, batch, progress) if prompts.pictured
            else Texts(base, records, studio.cache, batch)
        )  # fmt: skip
    for place in encoded.folders:
        studio.remember(place)
    if isinstance(encoded, Encoded) and (lost := len(records) - len(encoded.usable(records))):
        raise SpinliteError(f"{lost} of the pictures of {prompts.name} can't be encoded", fix="remove or replace them")
    for sampling, own in samplings:
        for artist in studio.artists:
            rows = [
                _row(studio, artist, encoded, records, sampling, seed, f"{seed + 1}/{seeds}", folder, fallback, watch)
                for seed in range(seeds)
            ]
            yield Drawn(artist.name, describe_sampling(sampling), own, rows)
    if isinstance(encoded, Encoded):
        place = folder / fingerprint(base.base_hash, "reals")
        row = _decode(base, records, lambda some: encoded.real(some), place, 0, 1)
        yield Drawn(REALS, "", False, [row])
    base.free()


def samplers(base: Family, own: Play) -> Iterator[tuple[Play, bool]]:
    """The run's own way to sample, and a good one that is another, at the same guidance; each with whether it is the run's."""
    own = own.model_copy(update={"points": 0, "start": 1.0})
    yield own, True
    steps = GOOD_STEPS if own.steps != GOOD_STEPS else 2 * GOOD_STEPS
    good = Play(steps=steps, guidance=own.guidance, guidance_low=own.guidance_low, guidance_high=own.guidance_high)
    try:
        make_scheduler(base, good, "cpu")
    except SpinliteError:  # a family with samplers of its own
        good = good.model_copy(update={"sampler": own.sampler})
    yield good, False


def describe_sampling(sampling: Play) -> str:
    """A way to sample in words."""
    return f"{sampling.sampler}, {sampling.steps} steps, {sampling.spacing}, guidance {sampling.guidance:g}"


def _row(
    studio: Studio, artist: Artist, encoded: Conditions, records: Sequence[Record], sampling: Play, seed: int, nth: str,
    folder: Path, fallback: Fallback, watch: Watch,
) -> list[Path]:  # fmt: skip
    """An artist's pictures with one seed."""
    base = studio.base
    made_of = (base.base_hash, artist.made_by, sampling.identity, "judge")
    store = Store(studio.cache / "fake" / fingerprint(*made_of, seed))
    studio.remember(store.folder)
    with watch.phase(f"{artist.name} · {sampling.steps} steps · {nth}", len(records)) as progress:
        if any(fake_key(r) not in store for r in records):
            with artist.active():
                fallback.run("play", len(records), lambda levers: play(
                    base, encoded, records, sampling, levers.play_batch, store, progress, "judge", seed
                ))  # fmt: skip
        place = folder / f"{artist.name}-{fingerprint(*made_of)}"
        batch = studio.device.levers.play_batch
        return _decode(base, records, lambda some: store.get([fake_key(r) for r in some])["x0"], place, seed, batch)


def _decode(
    base: Family, records: Sequence[Record], latents: Callable[[Sequence[Record]], Tensor], place: Path, seed: int, batch: int
) -> list[Path]:
    """Decode those latents whose pictures are not there yet; returns the files of all."""
    files = [place / f"{_slug(r.caption)}-{fake_key(r)[:8]}-{seed}.png" for r in records]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    for run in group_by_shape([records[i].bucket for i in missing], batch):
        some = [missing[j] for j in run]
        for i, picture in zip(some, base.decode(latents([records[i] for i in some])), strict=True):
            write_png(files[i], strip(picture))
    return files


def _slug(text: str) -> str:
    """The first words of a prompt, as a file's name can hold them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-") or "prompt"
