"""The opponent's errors of a whole round, measured ahead of learning: each step then runs the policy alone."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.progress import Progress
from spinlite.runs.run import SnapshotName
from spinlite.runs.store import fingerprint, fingerprint_files, read_tensors, write_tensors
from spinlite.training.batches import Batches, Errors
from spinlite.training.play import fake_key
from spinlite.training.session import Session
from spinlite.training.step import measure, required_errors

SAVE_SECONDS = 10.0  # of measuring that a cut-off run may lose


@torch.no_grad()
def measure_opponent(
    family: Family, slots: Slots, names: Sequence[str], batches: Batches, places: Sequence[int], path: Path, batch: int,
    progress: Progress,
) -> Errors:  # fmt: skip
    """The named errors of the draws at these places of a round: (places,) each, on the CPU.

    A draw is known before the policy is, and with it whether its caption is dropped: what the opponent makes of it is one
    number, which takes 4 bytes in the file at `path` (whose name has to say what it was made of) until the round is over.

    It costs the very forwards that the steps are spared, no more; but `batch` of them at once instead of a micro-batch, and
    no learning step switches adapters any more. In half precision an error depends, by rounding, on the batch it was
    measured in; against live errors of the policy that is noise in the margin.

    Draws of one shape are measured together. What was measured is kept every few seconds and goes on from there: in the same
    batches, so with the same bits.
    """
    groups = batches.by_shape(places)
    order = [place for group in groups for place in group]
    ends = list(accumulate(len(group) for group in groups))
    found = read_tensors(path)[0] if path.exists() else {name: torch.empty(0) for name in names}
    done = kept = len(found[names[0]])
    saved = time.monotonic()
    try:
        while done < len(order):
            made = batches.at_places(order[done : min(done + batch, next(end for end in ends if end > done))])
            more = {name: measure(family, slots, name, made).cpu() for name in names}
            found = {name: torch.cat([found[name], more[name]]) for name in names}
            done = len(found[names[0]])
            progress(done, len(places))
            if time.monotonic() - saved >= SAVE_SECONDS:
                write_tensors(path, found)
                saved, kept = time.monotonic(), done
    finally:
        if done > kept:
            write_tensors(path, found)
    at = {place: row for row, place in enumerate(order)}
    return {name: value[[at[place] for place in places]] for name, value in found.items()}


def known_errors(session: Session, k: int, batches: Batches) -> Errors:
    """The opponent's errors of the round's draws, where they are measured ahead, as they are where there are several opponents:
    a step needs none then. Else none, and the opponent has entered."""
    opponents = session.opponents(k)
    names = [
        n for n in required_errors(session.method) if not n.startswith("policy") and not (batches.paths and n.endswith("fake"))
    ]
    if not names or not (session.device.levers.cache_opponent or len(opponents) > 1):
        session.load_opponent(session.opponent(k))
        return {}
    place_of: dict[SnapshotName, list[int]] = {snapshot: [] for snapshot in opponents}
    snapshot_of = {fake_key(record): snapshot for snapshot, records in opponents.items() for record in records}
    for place, (record, _) in enumerate(batches.rows(range(batches.draws))):
        place_of[snapshot_of[fake_key(record)]].append(place)
    known, done = {name: torch.empty(batches.draws) for name in names}, 0
    with session.watch.phase(session.title(k, "opponent"), batches.draws) as progress:
        for snapshot, places in place_of.items():
            session.load_opponent(snapshot)
            found = _errors_of(
                session, k, snapshot, names, batches, places, partial(_offset_progress, progress, done, batches.draws)
            )
            done += len(places)
            for name in names:
                known[name][places] = found[name]
    return known


def _offset_progress(progress: Callable[..., None], start: int, of: int, done: int, _: int) -> None:
    progress(start + done, of)


def _errors_of(
    session: Session,
    k: int,
    snapshot: SnapshotName,
    names: Sequence[str],
    batches: Batches,
    places: Sequence[int],
    progress: Progress,
) -> Errors:
    """The errors of one opponent, which has entered, at its places."""
    path = _errors_file(session, k, snapshot, names)
    return session.fallback.run("opponent", len(places), lambda levers: measure_opponent(
        session.family, session.slots, names, batches, places, path, levers.play_batch, progress
    ))  # fmt: skip


def _errors_file(session: Session, k: int, snapshot: SnapshotName, names: Sequence[str]) -> Path:
    """Named by all that its numbers depend on."""
    levers, settings = session.device.levers, session.settings
    who = [
        session.family.base_hash,
        fingerprint_files([session.run.snapshot_path(snapshot)]),
        levers.precision,
        levers.quantize,
    ]
    data = [[r.key, r.lose_key, r.caption] for r in session.train]
    draws = [settings.learn.updates, settings.learn.batch, settings.learn.caption_dropout, settings.run.seed, k]
    how = [session.method.opponent, session.method.fakes, settings.play.model_dump(), settings.draw.model_dump()]
    return session.run.opponent_errors_path(fingerprint(who, names, data, draws, how))
