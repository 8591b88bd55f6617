"""The end of a round: measure the policy on held-out (unseen) pictures, and draw its sample sheet."""

import torch
from PIL.Image import Image
from torch import Tensor

from spinlite.data.encoded import group_by_shape
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.memory.device import Levers
from spinlite.progress import Progress
from spinlite.training.batches import Fakes
from spinlite.training.guards import Diverged
from spinlite.training.heldout import drift, has_grown, has_strayed, heldout_errors
from spinlite.training.session import Session
from spinlite.training.sheet import write_sheet
from spinlite.training.step import figures

OTHER = 0.01  # share of a held-out error; two measurements of one snapshot differ by less, through precision and batch sizes
_ASTRAY = "after round {} the colours or the contrast of samples are further from your pictures than at the start"
ERRORS = ["policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"]


def judge(session: Session, k: int, fakes: Fakes) -> str | None:
    """Measure round k, write its judge event to the journal and draw its sample sheet.

    Returns why the run must stop, or None. Raises Diverged if the policy's error is not a number.
    """
    title = session.title(k, "judge")
    settings = session.settings.judge

    def errors(names: list[str], progress: Progress) -> dict[str, Tensor]:
        return session.fallback.run("judge", len(session.heldout) * settings.draws, lambda levers: heldout_errors(
            session.family, session.slots, session.encoded, session.heldout, fakes, names, settings.draws, levers.play_batch,
            progress,
        ))  # fmt: skip

    session.load_opponent(session.opponent(k))
    with session.watch.phase(title, len(session.heldout) * settings.draws) as progress:
        measured = errors(ERRORS, progress)
    previous = measured["opponent_real"]
    if session.opponent(k) != k - 1:
        session.load_opponent(k - 1)
        previous = errors(["opponent_real"], lambda done, of: None)["opponent_real"]
    if not measured["policy_real"].isfinite().all():
        raise Diverged("numbers", "the held-out error is not a number", session.settings.learn.updates)
    moved, astray = _samples(session, k, title)
    found = {**figures(measured), "previous_real": previous.mean().item(), **moved}
    why = (
        _grown(k, previous, measured["policy_real"])
        or _wrong_opponent(session, k, found)
        or (_ASTRAY.format(k) if astray else None)
    )
    stopped = why if settings.stop else None
    opponents = {str(snapshot): len(records) for snapshot, records in session.opponents(k).items()}
    session.run.log("judge", round=k, opponent=session.opponent(k), opponents=opponents, stopped=stopped, **found)
    session.watch.show_round(k, session.settings.run.rounds, found)
    return stopped


def _grown(k: int, previous: Tensor, now: Tensor) -> str | None:
    if not has_grown(previous, now):
        return None
    return f"the held-out error on real pictures grew in round {k} ({previous.mean():.4f} to {now.mean():.4f})"


def _wrong_opponent(session: Session, k: int, found: dict[str, float]) -> str | None:
    """Check that the opponent is the snapshot it should be: its held-out error must be what it was when that was judged."""
    opponent = session.opponent(k)
    known = {event["round"]: event["policy_real"] for event in session.run.events("judge")}
    if not session.family.start:
        known[0] = found["base_real"]
    was, now = known.get(opponent), found["opponent_real"]
    if was is None or abs(now - was) < OTHER * was:
        return None
    return f"round {k}'s opponent was not snapshot {opponent}: its held-out error is {now:.4f}, and was {was:.4f}"


def _samples(session: Session, k: int, title: str) -> tuple[dict[str, float], bool]:
    """Sample the held-out captions and write the sheet; returns (drift figures for the journal, whether samples strayed)."""
    count = min(session.settings.judge.prompts, len(session.heldout))
    shown = [session.heldout[i * len(session.heldout) // count] for i in range(count)]

    def each(fakes: Fakes, records: list[Record]) -> list[Tensor]:
        return [fakes([record])[0] for record in records]

    base = session.sample_snapshot("base", 0, session.heldout, title + " (samples)", "heldout")
    before = session.sample_snapshot("opponent", k - 1, session.heldout, title + " (samples)", "heldout")
    now = session.sample_snapshot("policy", k, session.heldout, title + " (samples)", "heldout")
    latents = {
        "base": each(base, shown),
        "previous" if k > 1 else "your LoRA" if session.family.start else "previous (base)": each(before, shown),
        f"round {k} (current)": each(now, shown),
        "your picture, held out": each(session.encoded.real, shown),
    }
    _sheet(session, k, [r.caption for r in shown], latents)
    start = session.sample_snapshot("opponent", 0, session.heldout, title + " (samples)", "heldout")
    real, samples = each(session.encoded.real, session.heldout), each(now, session.heldout)
    shift, spread = drift(each(base, session.heldout), samples)
    away_mean, away_deviation = drift(real, samples)
    found = {"drift_mean": shift, "drift_deviation": spread, "away_mean": away_mean, "away_deviation": away_deviation}
    return found, has_strayed(real, each(start, session.heldout), samples)


def _sheet(session: Session, k: int, captions: list[str], latents: dict[str, list[Tensor]]) -> None:
    def decode(levers: Levers) -> dict[str, list[Image]]:
        return {label: decode_latents(session.family, rows, levers.play_batch) for label, rows in latents.items()}

    try:
        rows = session.fallback.run("sheet", len(captions), decode)
    except SpinliteError as error:  # the sheet is only for looking at: the run goes on without it
        session.watch.say(f"no sample sheet of round {k}: {error.problem}")
        return
    finally:
        session.family.free()
    name = f"{session.run.name} · round {k} of {session.settings.run.rounds} · {session.settings.method['name']}"
    write_sheet(session.run.sheet_path(k), name, captions, rows)


def decode_latents(family: Family, latents: list[Tensor], batch: int) -> list[Image]:
    """Latents, (C, ...) each, of any shapes -> pictures in the same order. Up to `batch` of one shape are decoded together."""
    found: dict[int, Image] = {}
    for run in group_by_shape([x.shape for x in latents], batch):
        found |= zip(run, family.decode(torch.stack([latents[i] for i in run])), strict=True)
    return [found[i] for i in range(len(latents))]
