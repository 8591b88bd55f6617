"""Play: the opponent makes a picture (a fake) for each caption, with a diffusers scheduler.

Fakes stay latents; the VAE is not needed. The noise of each depends on its own seed alone, not on its batch.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spinlite.config.settings import Play
from spinlite.data.groups import group_by_shape
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.families.family import Cond, Family
from spinlite.maths.draws import gaussian, generator, permutation
from spinlite.memory import processes
from spinlite.memory.device import upload
from spinlite.progress import Progress
from spinlite.runs.files import fingerprint
from spinlite.runs.store import Store
from spinlite.training.batches import place
from spinlite.training.guards import Diverged

STOCHASTIC = ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")  # add noise at each step
# called with (step, t (B,), x_t, prediction with caption, prediction without), the latter (B, ...), before guidance
StepCallback = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]


class Conditions(Protocol):
    """What play asks of `Encoded`: latents of real pictures, of which it takes the shape, and the conditioning of captions."""

    def real(self, records: Sequence[Record]) -> Tensor: ...
    def cond(self, records: Sequence[Record], dropped: Sequence[bool] | None = None) -> Cond: ...


def play(
    family: Family, encoded: Conditions, records: Sequence[Record], settings: Play, batch: int, store: Store,
    progress: Progress, *names: int | str,
) -> None:  # fmt: skip
    """Make one fake for each record's caption, in the shape of its picture, and put it into the store under its `fake_key`.

    The network samples with the LoRA that is active. The noise of a fake is a function of `names` and the record's key.
    `batch` fakes are made together; a batch that is in the store is skipped. Batches are the same however often play was
    interrupted, so a resumed round has the same bits.

    With `settings.start` below 1 the fake of a picture begins with that picture, noised to this share.

    With `settings.points` an item also holds that many points of its sampling path: "x_t", "own" and "own_empty" (the
    network's predictions with and without caption), each (points, ...), and "t" (points,).

    Raises Diverged if a fake is not finite, and SpinliteError if the settings don't go together.
    """
    steps, done = len(make_scheduler(family, settings, "cpu").timesteps), 0

    def make(chunk: list[Record]) -> dict[str, Tensor]:
        noise = torch.stack([gaussian(encoded.real([r]).shape[1:], "play", *names, r.key) for r in chunk])
        chance = [generator("sampler", *names, r.key) for r in chunk]
        path = PathRecorder(settings, steps, [(*names, r.key) for r in chunk])
        fakes = sample(
            family, noise, encoded.cond(chunk), encoded.cond(chunk, [True] * len(chunk)), settings, chance,
            path.record if settings.points else None, encoded.real(chunk) if settings.start < 1 else None,
        )  # fmt: skip
        if not fakes.isfinite().all():
            raise Diverged("numbers", "samples are not numbers")
        return {"x0": fakes, **path.tensors()}

    chunks = [[records[i] for i in run] for run in group_by_shape([r.bucket for r in records], batch)]
    missing = processes.from_lead(lambda: [chunk for chunk in chunks if any(fake_key(r) not in store for r in chunk)])
    done = len(records) - sum(map(len, missing))

    with processes.writing(store, sum(map(len, missing))):
        for chunk, made in processes.spread(missing, make):
            if processes.leads():
                store.add([fake_key(r) for r in chunk], made)
            progress(done := done + len(chunk), len(records))


def fake_key(record: Record) -> str:
    """The store's key of a fake: a hash of the picture, caption and shape that it was made for."""
    return fingerprint(record.key, record.caption, *(record.bucket or ()))


class PathRecorder:
    """Keeps `settings.points` points of each sample's path in a batch, at steps that the sample's names choose at random."""

    def __init__(self, settings: Play, steps: int, names: Sequence[tuple[int | str, ...]]) -> None:
        if settings.points > steps:
            raise SpinliteError(
                f"play.points = {settings.points}, but a path has {steps} steps", fix="lower play.points, or raise play.steps"
            )
        self._wanted = [permutation(steps, "points", *each)[: settings.points] for each in names]
        self._rows: list[dict[int, dict[str, Tensor]]] = [{} for _ in names]

    def record(self, step: int, t: Tensor, x_t: Tensor, own: Tensor, own_empty: Tensor) -> None:
        """Keep this step for the samples that chose it. x_t is kept in the precision of the predictions."""
        for row, wanted in enumerate(self._wanted):
            if step in wanted:
                point = {"x_t": x_t[row].to(own.dtype), "t": t[row], "own": own[row], "own_empty": own_empty[row]}
                self._rows[row][step] = {name: value.cpu() for name, value in point.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What was kept, each (B, points, ...), in the order in which each sample chose its steps; {} without points."""
        if not self._wanted[0]:
            return {}
        return {
            name: torch.stack([
                torch.stack([kept[step][name] for step in wanted])
                for kept, wanted in zip(self._rows, self._wanted, strict=True)
            ])
            for name in ("x_t", "t", "own", "own_empty")
        }  # fmt: skip


def make_scheduler(family: Family, settings: Play, device: torch.device | str, shape: Sequence[int] = ()) -> Any:
    """The diffusers scheduler of these settings, its steps set for latents of this shape (else of the family's own).

    Raises SpinliteError if the settings don't go together.
    """
    scheduler = family.schedule(settings.sampler, settings.spacing, settings.steps, shape or family.latent_shape, device)
    if settings.eta and "eta" not in _step_options(scheduler):
        raise SpinliteError(f"sampler {settings.sampler!r} has no eta", fix='set play.eta = 0, or play.sampler = "ddim"')
    if settings.start < 1:
        _first_step(scheduler, settings.start)
    return scheduler


def count_steps(family: Family, settings: Play, shape: Sequence[int] = ()) -> int:
    """How many times the network is asked for a fake of this shape (else of the family's own); guidance asks twice in one.

    Raises SpinliteError if the settings don't go together.
    """
    scheduler = make_scheduler(family, settings, "cpu", shape)
    return len(scheduler.timesteps) - (_first_step(scheduler, settings.start) if settings.start < 1 else 0)


@torch.no_grad()
def sample(
    family: Family, noise: Tensor, cond: Cond, empty: Cond, settings: Play, chance: Sequence[torch.Generator] = (),
    see: StepCallback | None = None, real: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Unit noise (B, ...) -> latents (B, ...) on the CPU, in fp32. `cond` holds the captions, `empty` the empty caption.

    Given the latents `real` (B, ...), they begin with those, noised to the first of the sampler's times that is no later than
    `settings.start` (SDEdit; Meng et al. 2021, arXiv 2108.01073).

    Guidance (CFG; Ho & Salimans 2022, arXiv 2207.12598): prediction = empty + guidance (cond - empty), if guidance > 1. It
    acts at times between `guidance_low` and `guidance_high` (Kynkaanniemi et al. 2024, arXiv 2404.07724). Both predictions are
    made in one batch of 2 B; without guidance only the first is made, unless `see` wants both.

    `chance` has one random generator for each sample, for samplers that add noise. `see` is called at every step.
    """
    device = next(family.net.parameters()).device
    scheduler = make_scheduler(family, settings, "cpu", noise.shape[1:])  # on the CPU, so that no step waits for the device
    options: dict[str, Any] = {"eta": settings.eta} if settings.eta else {}
    if chance and "generator" in _step_options(scheduler):
        options["generator"] = list(chance)
    both = place({name: torch.cat([empty[name], cond[name]]) for name in cond if settings.guidance > 1 or see}, device)
    captioned = {name: value[len(noise) :] for name, value in both.items()} or place(cond, device)
    whole = scheduler.config.num_train_timesteps  # guidance_low, guidance_high and start are shares of it
    times, x = _begin(family, scheduler, noise.to(device), None if real is None else real.to(device), settings.start)
    places = upload(times / family.path.timestep_scale, device)
    for i, timestep in enumerate(times):
        x_t = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        guided = settings.guidance > 1 and settings.guidance_low <= timestep.item() / whole <= settings.guidance_high
        twice = guided or see is not None
        rows = torch.cat([x_t, x_t]) if twice else x_t
        t = places[i].expand(len(rows))
        prediction = family.denoise(rows, t, both if twice else captioned)
        without, with_caption = prediction.chunk(2) if twice else (prediction, prediction)
        if see:
            see(i, t[: len(x)], x_t, with_caption, without)
        prediction = with_caption.float()
        if guided:
            prediction = without.float() + settings.guidance * (prediction - without.float())
        x = scheduler.step(prediction, timestep, x, **options).prev_sample
    return x.float().cpu()


def _begin(family: Family, scheduler: Any, noise: Tensor, real: Tensor | None, start: float) -> tuple[Tensor, Tensor]:
    """(times, x_t at the first of them in the sampler's own scale): noise alone, or `real` noised to this share of times."""
    if real is None:
        return scheduler.timesteps, noise * getattr(scheduler, "init_noise_sigma", 1.0)
    times, first = scheduler.timesteps, _first_step(scheduler, start)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    t = family.path.nearest((times[first] / family.path.timestep_scale).expand(len(real))).to(real.device)
    x_t = family.path.noise(real, noise, t)
    if hasattr(scheduler, "scale_model_input"):
        x_t = x_t / scheduler.scale_model_input(torch.ones_like(x_t[:1]), times[first])
    return times[first:], x_t


def _first_step(scheduler: Any, start: float) -> int:
    """The first step that is no later than this share of all times. Raises SpinliteError if there is none."""
    times, whole = scheduler.timesteps, scheduler.config.num_train_timesteps
    for i in range(0, len(times), getattr(scheduler, "order", 1)):
        if times[i] <= start * whole + 0.01:  # times are rounded
            return i
    fix = f"set play.start = {math.ceil(100 * times[-1].item() / whole) / 100:g} or more"
    raise SpinliteError(f"no step of the sampler has as little noise as play.start = {start:g}", fix=fix)


def coarseness(
    family: Family, noise: Tensor, cond: Cond, empty: Cond, settings: Play, real: Tensor | None = None
) -> float | None:
    """How far samples are from samples of twice the steps and the same noise (B, ...), and the same `real` as in `sample`.

    Root mean square, in standard deviations of the finer samples. None for samplers that add noise of their own: two of their
    samples differ anyway. None too where there are no times for twice the steps.
    """
    scheduler = make_scheduler(family, settings, "cpu")
    many = 2 * settings.steps > scheduler.config.num_train_timesteps
    if settings.eta or many or type(scheduler).__name__ in STOCHASTIC:
        return None
    own, finer = (
        sample(family, noise, cond, empty, settings.model_copy(update={"steps": times * settings.steps}), real=real)
        for times in (1, 2)
    )
    return ((own - finer).square().mean().sqrt() / finer.std()).item()


def _step_options(scheduler: Any) -> Any:
    """The names of the options of a scheduler's step."""
    return inspect.signature(scheduler.step).parameters
