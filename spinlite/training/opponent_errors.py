"""The opponent's errors of a whole round, measured before the learning: each step then runs the policy alone.

This is possible because a draw is known in advance: its timestep, its noise, and whether its caption is dropped. What the
opponent makes of it is one number, 4 bytes on disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.memory import processes
from spinlite.progress import Progress
from spinlite.runs.files import fingerprint, fingerprint_files
from spinlite.runs.snapshots import SnapshotName
from spinlite.runs.store import find_fault, read_tensors, write_tensors
from spinlite.training.batches import Batches, Errors
from spinlite.training.play import fake_key
from spinlite.training.session import Session
from spinlite.training.step import measure, required_errors

SAVE_SECONDS = 10.0  # a run that is killed loses at most so much measuring


@torch.no_grad()
def measure_opponent(
    family: Family, slots: Slots, names: Sequence[str], batches: Batches, places: Sequence[int], path: Path, batch: int,
    progress: Progress,
) -> Errors:  # fmt: skip
    """The named errors of the draws at these places of a round: (places,) each, on the CPU.

    It takes as many forwards as the steps save, but `batch` draws of one shape go through the network together instead of a
    micro-batch, and no step has to switch LoRAs. In half precision an error depends a little on the batch that it was
    measured in. The policy's errors are measured in other batches, so this is noise in the margin.

    The file at `path` holds what is measured so far. It is written every few seconds, and an interrupted measurement goes on
    in the same batches, so with the same bits. The file's name must depend on everything that the numbers depend on.
    """
    groups = batches.by_shape(places)
    order = [place for group in groups for place in group]
    ends = list(accumulate(len(group) for group in groups))  # no batch reaches over the end of a shape
    errors = read_tensors(path)[0] if path.exists() else {name: torch.empty(0) for name in names}
    done = saved_count = len(errors[names[0]])
    saved = time.monotonic()

    def measure_some(some: Sequence[int]) -> Errors:
        same_shape = batches.at_places(some)
        return {name: measure(family, slots, name, same_shape).cpu() for name in names}

    try:
        for _, more in processes.spread(_runs(order, done, ends, batch), measure_some):
            errors = {name: torch.cat([errors[name], more[name]]) for name in names}
            done = len(errors[names[0]])
            progress(done, len(places))
            if time.monotonic() - saved >= SAVE_SECONDS:
                write_tensors(path, errors, {"name": path.stem})
                saved, saved_count = time.monotonic(), done
    finally:
        if done > saved_count:
            write_tensors(path, errors, {"name": path.stem})
    row_of = {place: row for row, place in enumerate(order)}
    return {name: value[[row_of[place] for place in places]] for name, value in errors.items()}


def _runs(order: Sequence[int], start: int, ends: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
    """The places from `start` on, `batch` at a time; no run reaches over one of the `ends`."""
    while start < len(order):
        to = min(start + batch, next(end for end in ends if end > start))
        yield order[start:to]
        start = to


def known_errors(session: Session, k: int, batches: Batches) -> Errors:
    """The opponent's errors for all draws of round k, by name, (draws,) each.

    They are measured in advance if `memory.cache_opponent` says so, or if the round has several opponents. The steps then need
    no opponent. Otherwise returns {} and loads the opponent, and the steps measure its errors themselves.
    """
    opponents = session.opponents(k)
    names = [name for name in required_errors(session.method) if not name.startswith("policy")]
    if batches.paths:  # on a fake's own path the opponent's error is known without measuring
        names = [name for name in names if not name.endswith("fake")]
    if not names or not (session.device.levers.cache_opponent or len(opponents) > 1):
        session.load_opponent(session.opponent(k))
        return {}
    places_of: dict[SnapshotName, list[int]] = {snapshot: [] for snapshot in opponents}
    snapshot_of = {fake_key(record): snapshot for snapshot, records in opponents.items() for record in records}
    for place, (record, _) in enumerate(batches.rows(range(batches.draws))):
        places_of[snapshot_of[fake_key(record)]].append(place)
    known, done = {name: torch.empty(batches.draws) for name in names}, 0
    with session.watch.phase(session.title(k, "opponent"), batches.draws) as progress:
        for snapshot, places in places_of.items():
            session.load_opponent(snapshot)
            advance = partial(_offset_progress, progress, done, batches.draws)
            errors = _measure_at(session, k, snapshot, names, batches, places, advance)
            done += len(places)
            for name in names:
                known[name][places] = errors[name]
    return known


def _offset_progress(progress: Callable[..., None], start: int, of: int, done: int, _: int) -> None:
    progress(start + done, of)


def _measure_at(
    session: Session, k: int, snapshot: SnapshotName, names: Sequence[str], batches: Batches, places: Sequence[int],
    progress: Progress,
) -> Errors:  # fmt: skip
    """The errors of the loaded opponent, which is this snapshot, at its places."""
    path = _errors_file(session, k, snapshot, names)
    if path.exists() and (fault := find_fault(path, path.stem)):
        session.watch.say(f"{fault}; it is measured again")
        path.unlink()
    with session.fixed("opponent"):
        return session.fallback.run("opponent", len(places), lambda levers: measure_opponent(
            session.family, session.slots, names, batches, places, path, levers.play_batch, progress
        ))  # fmt: skip


def _errors_file(session: Session, k: int, snapshot: SnapshotName, names: Sequence[str]) -> Path:
    """The file of the errors, named by the hash of all that they depend on."""
    levers, settings = session.device.levers, session.settings
    snapshot_hash = fingerprint_files([session.run.snapshot_path(snapshot)])
    who = [session.family.base_hash, snapshot_hash, levers.precision, levers.quantize, *levers.encoder_bits]
    data = [r.identity for r in session.train]
    data += [[settings.data.unmasked_weight]] * any(r.mask for r in session.train)
    data += [["shapes together"]] * (len({r.bucket for r in session.train}) > 1)  # an earlier version had another order
    draws = [settings.learn.length, settings.learn.batch, settings.learn.caption_dropout, settings.run.seed, k]
    how = [session.method.opponent, session.method.fakes, settings.play.identity, settings.draw.model_dump()]
    return session.run.opponent_errors_path(fingerprint(who, names, data, draws, how))
