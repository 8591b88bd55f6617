"""What a snapshot is worth: measured on captions and pictures that nothing trained on, with bootstrap resamples.

Samples are drawn by a good sampler that no run used, and for KID and look once more by that of the fakes ("own ...").

Shapes: n captions, d features of a picture. Every measure is a value and the same RESAMPLES resamples of the captions for all
snapshots, so that differences of two snapshots are paired, resample by resample.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from spinlite.config.settings import Play, Settings
from spinlite.data.encoded import Encoded
from spinlite.data.groups import chunks
from spinlite.data.pictures import open_picture
from spinlite.data.records import Record
from spinlite.evaluate.kid import FEATURES, contrasts, features, off_diagonal, resampled
from spinlite.evaluate.look import Look, styles
from spinlite.evaluate.prompts import JUDGE, read_pictures
from spinlite.evaluate.towers import Towers
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.lora.start import make_slots
from spinlite.maths.draws import generator
from spinlite.memory import device
from spinlite.progress import Progress
from spinlite.runs.files import fingerprint, fingerprint_files
from spinlite.runs.store import Store, read_tensors
from spinlite.study.arms import Scale
from spinlite.study.samples import SHOWN
from spinlite.training.animation import strip
from spinlite.training.heldout import heldout_errors
from spinlite.training.play import fake_key, play

RESAMPLES = 200
NEIGHBOURS = 5  # of a real picture, whose ball a sample has to fall into to cover it
DIGITS = 5
BATCH = 16

Measured = dict[str, dict[str, Any]]  # measure -> {"value", "resamples"}


class Yardstick:
    """The captions, pictures and noise that every snapshot is measured with."""

    def __init__(self, scale: Scale, towers: Towers, cache: Path) -> None:
        every = read_pictures(JUDGE)
        self.records: list[Record] = every[:: len(every) // scale.captions][: scale.captions]
        self.reals = features([open_picture(r.path) for r in self.records])
        self.picks = torch.randint(len(self.records), (RESAMPLES, len(self.records)), generator=generator("study"))
        self._scale, self._towers, self._look, self._cache = scale, towers, Look.load(), cache

    def of_reals(self) -> Measured:
        """The real pictures themselves: what alignment and diversity they have."""
        captions = [r.caption for r in self.records]
        return self._figures(self._towers.score(self.reals, captions), torch.cdist(self.reals, self.reals))

    @property
    def shown(self) -> list[Record]:
        """Those whose samples are looked at."""
        return self.records[:: len(self.records) // SHOWN][:SHOWN]

    def pictures(self, settings: Settings, snapshot: Path | None) -> list[Image]:
        """A snapshot's samples of the captions shown; none: the base's. Those that were measured, or the same again."""
        base, encoded, slots, made_by = self._opened(settings, snapshot)
        with slots.merged("policy" if snapshot else "base"):
            return self._samples(base, encoded, made_by, self.shown, self._good, lambda done, of: None)

    def measure(self, settings: Settings, snapshot: Path | None, progress: Progress) -> Measured:
        """A snapshot of a run with these settings; none: the base."""
        base, encoded, slots, made_by = self._opened(settings, snapshot)
        with slots.merged("policy" if snapshot else "base"):  # merged into it, the policy is measured as the base is
            errors = heldout_errors(
                base, slots, encoded, self.records, None, ["base_real"], self._scale.draws, BATCH, lambda done, of: None
            )["base_real"]
            good, own = (
                self._samples(base, encoded, made_by, self.records, sampling, progress)
                for sampling in (self._good, settings.play.model_copy(update={"points": 0, "start": 1.0}))
            )
        base.free()
        seen, seen_own = styles(good), styles(own)
        fakes = seen[:, :FEATURES]
        scores = self._towers.score(fakes, [r.caption for r in self.records])
        scores |= {"error": errors, "coverage": covered(fakes, self.reals)}
        scores |= {"look": self._look.score(seen), "own look": self._look.score(seen_own)}
        figures = self._figures(scores, torch.cdist(fakes, fakes))
        return figures | {"kid": self._kid(fakes), "own kid": self._kid(seen_own[:, :FEATURES])}

    @property
    def _good(self) -> Play:
        """The sampler that no run used."""
        return Play(steps=self._scale.judge_steps, guidance=self._scale.guidance)

    def _kid(self, fakes: Tensor) -> dict[str, Any]:
        h = contrasts(fakes[:, None], self.reals)
        return _measure(1000 * off_diagonal(h), 1000 * resampled(h, self.picks))

    def _opened(self, settings: Settings, snapshot: Path | None) -> tuple[Family, Encoded, Slots, str]:
        """The model with a snapshot as its policy, the judged records as it takes them, and what names its samples."""
        base = load_family(settings.model, device.choose_device(settings.memory))
        encoded = Encoded(base, self.records, self._cache, BATCH, lambda done, of: None)
        slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)
        if snapshot:
            slots.load("policy", read_tensors(snapshot)[0])
        return base, encoded, slots, fingerprint_files([snapshot]) if snapshot else "base"

    def _samples(
        self, base: Family, encoded: Encoded, made_by: str, records: Sequence[Record], sampling: Play, progress: Progress
    ) -> list[Image]:
        store = Store(self._cache / "fake" / fingerprint(base.base_hash, made_by, sampling.identity, "study"))
        play(base, encoded, records, sampling, BATCH, store, progress, "judge", 0)
        return [strip(p) for chunk in chunks(records, 8) for p in base.decode(store.get([fake_key(r) for r in chunk])["x0"])]

    def _figures(self, scores: dict[str, Tensor], distances: Tensor) -> Measured:
        apart = distances.double()
        figures = {name: _measure(s.double().mean().item(), s.double()[self.picks].mean(1)) for name, s in scores.items()}
        return figures | {"diversity": _measure(off_diagonal(apart), resampled(apart, self.picks))}


def covered(fakes: Tensor, reals: Tensor) -> Tensor:
    """1 for a real picture whose ball, up to its 5th neighbour among the reals, holds a sample, else 0: (n, d) twice -> (n,).

    Its mean is coverage (Naeem et al. 2020, arXiv 2002.09797, eq. 9).
    """
    radius = torch.cdist(reals, reals).kthvalue(NEIGHBOURS + 1, dim=1).values  # the first is the picture itself
    return (torch.cdist(reals, fakes) <= radius[:, None]).any(1).double()


def _measure(value: float, resamples: Tensor) -> dict[str, Any]:
    return {"value": _short(value), "resamples": [_short(x) for x in resamples.tolist()]}


def _short(x: float) -> float:
    """Five digits: what a line of results has room for, and more than any interval resolves."""
    return float(f"{x:.{DIGITS}g}")
