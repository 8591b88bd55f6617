"""Every snapshot of a run before outside judges: KID, look and alignment, by the sampler of its fakes and by a good one.

Self-play learns whatever tells fakes from real pictures, and a poor sampler tells them apart best: a gain that the fakes'
own sampler shows alone is the repair of that sampler. So a run is judged by a second one too, of 30 steps or more, that none
of its fakes came from.

Shapes: n captions, draws samples of each; what judges see of them, (n, draws, S), begins with the 1280 features of KID.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spinlite.config.load import load_settings
from spinlite.config.settings import Play, Settings
from spinlite.data.encoded import Encoded
from spinlite.data.groups import chunks
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.evaluate.kid import FEATURES, Estimate, contrasts, diversity, estimate, estimate_mean, off_diagonal
from spinlite.evaluate.look import Look, styles
from spinlite.evaluate.towers import Towers
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.lora.start import make_slots
from spinlite.memory import device
from spinlite.runs.files import fingerprint, fingerprint_files
from spinlite.runs.store import Store, read_tensors
from spinlite.training.play import fake_key, make_scheduler, play

GOOD_STEPS = 30
Phase = Callable[[str, int], AbstractContextManager[Callable[..., None]]]  # tells how far long work is


@dataclass(frozen=True)
class Judges:
    """What samples are held against: records, what is seen of their pictures (n, S), and classifiers that fit them, if any."""

    records: Sequence[Record]
    reals: Tensor
    look: Look | None
    towers: Towers | None

    def score(self, fakes: Tensor) -> dict[str, Tensor]:
        """By measure, a matrix (n, n) for KID and a number for each caption (n,) for the others, in percent."""
        shown = fakes[..., :FEATURES]
        found = {"kid": contrasts(shown, self.reals[:, :FEATURES])}
        if self.look:
            found["look"] = 100 * torch.stack([self.look.score(one) for one in fakes.unbind(1)]).mean(0)
        if self.towers:
            captions = [r.caption for r in self.records]
            each = [self.towers.score(one, captions)["alignment"] for one in shown.unbind(1)]
            found["alignment"] = torch.stack(each).mean(0).double()
        return found


@dataclass(frozen=True)
class Row:
    """A snapshot judged by one sampler: figures by measure, and their paired differences to the base's; none for the base."""

    run: str
    round: int
    sampler: str
    own: bool  # whether the run's fakes came from it
    figures: dict[str, Estimate]
    to_base: dict[str, Estimate]
    way: float | None  # of KID, from the base to real pictures through the VAE
    diversity: float


@dataclass(frozen=True)
class Verdict:
    """All rows of a run, and what real pictures have after they went through its VAE, the most that its samples can have."""

    rows: list[Row]
    through: dict[str, Estimate]


@dataclass(frozen=True)
class _Bench:
    """A run's model with the judged records, and where its samples are kept."""

    folder: Path
    settings: Settings
    base: Family
    slots: Slots
    encoded: Encoded
    batch: int

    @property
    def kept(self) -> Path:
        return self.folder.parent / "cache"


def judge(folder: Path, judges: Judges, draws: int, phase: Phase, rounds: Sequence[int] = ()) -> Verdict:
    """Every snapshot of a run, or the base and those of `rounds`; samples are kept in the runs' cache.

    Noise is a function of the real picture and the draw, the same for all snapshots and samplers, so differences are paired.
    Raises SpinliteError where the folder is no run, or its base has changed.
    """
    ladder = {int(path.stem): path for path in (folder / "snapshots").glob("*.safetensors") if path.stem.isdigit()}
    if 0 not in ladder:
        raise SpinliteError(f"{folder} holds no snapshots of a run", fix="name a run of `spinlite train`, such as runs/demo")
    bench = _open(folder, judges.records, phase)
    through = judges.score(_through_vae(bench, judges.records))
    floor, rows = off_diagonal(through["kid"]), []
    for sampling, own in samplers(bench.base, bench.settings.play):
        first: dict[str, Tensor] = {}
        for k in sorted(ladder):
            if rounds and k not in (0, *rounds):
                continue
            fakes = _samples(bench, ladder[k], k, judges.records, sampling, draws, phase)
            found = judges.score(fakes)
            first = first or found
            rows.append(Row(
                folder.name, k, describe_sampling(sampling), own, {name: _estimate(name, x) for name, x in found.items()},
                {name: _estimate(name, x - first[name]) for name, x in found.items()} if k else {},
                _way(first["kid"], found["kid"], floor) if k else None, diversity(fakes[..., :FEATURES]),
            ))  # fmt: skip
    return Verdict(rows, {name: _estimate(name, x) for name, x in through.items()})


def samplers(base: Family, own: Play) -> Iterator[tuple[Play, bool]]:
    """The run's own way to sample, and a good one that is another, at the same guidance; each with whether it is the run's."""
    own = own.model_copy(update={"points": 0})
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


def _estimate(name: str, x: Tensor) -> Estimate:
    return estimate(x) if name == "kid" else estimate_mean(x)


def _way(before: Tensor, now: Tensor, floor: float) -> float:
    start = off_diagonal(before)
    return (start - off_diagonal(now)) / (start - floor)


def _open(folder: Path, records: Sequence[Record], phase: Phase) -> _Bench:
    settings = load_settings(str(folder / "settings.toml"))
    where = device.choose_device(settings.memory)
    base, batch = load_family(settings.model, where), where.levers.play_batch
    with phase(f"{folder.name} · encode", len(records)) as progress:
        encoded = Encoded(base, records, folder.parent / "cache", batch, progress)
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)
    return _Bench(folder, settings, base, slots, encoded, batch)


def _through_vae(bench: _Bench, records: Sequence[Record]) -> Tensor:
    """Real pictures through the VAE -> (n, 1, S)."""
    pictures = [p for r in records for p in bench.base.decode(bench.encoded.real([r]))]
    return styles(pictures)[:, None]


def _samples(bench: _Bench, path: Path, k: int, records: Sequence[Record], sampling: Play, draws: int, phase: Phase) -> Tensor:
    """A snapshot's samples -> (n, draws, S)."""
    state, about = read_tensors(path)
    if json.loads(about["spinlite"])["base"] != bench.base.base_hash:
        raise SpinliteError(f"{bench.base.title} has changed since {path} was made", fix="put the base model back")
    bench.slots.load("policy", state)
    made_by, pictures = fingerprint_files([path]) if k or bench.base.start else "base", []
    for draw in range(draws):
        names = fingerprint(bench.base.base_hash, made_by, sampling.identity, "judge", draw)
        store = Store(bench.kept / "fake" / names)
        title = f"{bench.folder.name} · round {k} · {sampling.steps} steps" + f" · {draw + 1}/{draws}" * (draws > 1)
        with phase(title, len(records)) as progress, bench.slots.use("policy" if k or bench.base.start else "base"):
            play(bench.base, bench.encoded, records, sampling, bench.batch, store, progress, "judge", draw)
        for chunk in chunks(records, bench.batch):
            pictures += bench.base.decode(store.get([fake_key(r) for r in chunk])["x0"])
    bench.base.free()
    return styles(pictures).view(draws, len(records), -1).transpose(0, 1)
