"""The end of a round: measure the policy on held-out (unseen) pictures, and draw its sample sheet."""

from typing import TypeVar

from PIL.Image import Image
from torch import Tensor

from spinlite.config.prompts import Prompt
from spinlite.data.records import Record
from spinlite.data.split import enough_to_judge
from spinlite.errors import SpinliteError
from spinlite.families.picture import Drawn
from spinlite.memory import processes
from spinlite.memory.device import Levers
from spinlite.progress import Progress
from spinlite.training.animation import is_clip, strip, write_animation
from spinlite.training.batches import Fakes
from spinlite.training.cells import read_cells, write_cells
from spinlite.training.decode import decode_latents
from spinlite.training.distance import energy_distance
from spinlite.training.guards import Diverged
from spinlite.training.heldout import drift, has_grown, heldout_errors, mean_of_pictures
from spinlite.training.motion import has_stopped, share
from spinlite.training.panels import write_panels
from spinlite.training.prompt_sheet import draw_prompts, tell
from spinlite.training.session import Session
from spinlite.training.step import figures

WAY, STRIPS = 8, 2  # steps of a strip at the most, besides the round's own and your picture; strips of a sheet
OTHER = 0.01  # of a held-out error: more apart than precision and batches put two measurements of one snapshot
T = TypeVar("T")
_ASTRAY = "after round {} samples are further from your pictures than at the start, by more than chance explains"
_STOPPED = "after round {} samples move less than half as much as at the start and as your clips"
ERRORS = ["policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"]


def judge(session: Session, k: int, fakes: Fakes) -> str | None:
    """Measure round k, write its judge event to the journal and draw its sample sheet.

    Returns why the run must stop, or None. Raises Diverged if the policy's error is not a number.
    """
    title = session.title(k, "judge")
    measured, previous = _errors(session, k, fakes, title)
    moved, still = _samples(session, k, title)
    found = {**figures(measured), "previous_real": previous.mean().item(), **moved}
    draw_prompts(session, k)
    distances, astray = _distances(session, k)
    found |= distances
    enough = enough_to_judge(session.heldout)
    found |= {} if enough else {"enough": False}
    why = (
        (_grown(session, k, previous, measured["policy_real"]) if enough else None)
        or _wrong_opponent(session, k, found)
        or (_ASTRAY.format(k) if astray else None)
        or (_STOPPED.format(k) if still else None)
    )
    stopped = why if session.settings.judge.stop else None
    opponents = {str(snapshot): len(records) for snapshot, records in session.opponents(k).items()}
    session.run.log("judge", round=k, opponent=session.opponent(k), opponents=opponents, stopped=stopped, **found)
    session.watch.show_round(k, session.settings.run.rounds, found)
    return stopped


def _errors(session: Session, k: int, fakes: Fakes, title: str) -> tuple[dict[str, Tensor], Tensor]:
    """(the errors on held-out pictures by name, the error on real of the snapshot before), each (records, draws)."""
    draws = session.settings.judge.draws

    def errors(names: list[str], progress: Progress) -> dict[str, Tensor]:
        return session.fallback.run("judge", len(session.heldout) * draws, lambda levers: heldout_errors(
            session.family, session.slots, session.encoded, session.heldout, fakes, names, draws, levers.play_batch,
            progress,
        ))  # fmt: skip

    session.load_opponent(session.opponent(k))
    with session.watch.phase(title, len(session.heldout) * draws) as progress:
        measured = errors(ERRORS, progress)
    previous = measured["opponent_real"]
    if session.opponent(k) != k - 1:
        session.load_opponent(k - 1)
        previous = errors(["opponent_real"], lambda done, of: None)["opponent_real"]
    if not measured["policy_real"].isfinite().all():
        raise Diverged("numbers", "the error on unseen pictures is not a number", session.settings.learn.length)
    return measured, previous


def _grown(session: Session, k: int, previous: Tensor, now: Tensor) -> str | None:
    """Why the errors on unseen pictures, (records,) each, stop the run; None if chance explains how they changed."""
    before, after = (mean_of_pictures(session.heldout, errors) for errors in (previous, now))
    if not has_grown(before, after):
        return None
    change = now.mean().item() / previous.mean().item() - 1
    return f"the error on unseen pictures grew in round {k}, by {100 * change:.2g} %, which is more than chance explains"


def _wrong_opponent(session: Session, k: int, found: dict[str, float]) -> str | None:
    """Check that the opponent is the snapshot it should be: its held-out error must be what it was when that was judged."""
    opponent = session.opponent(k)
    judged = (event["policy_real"] for event in reversed(session.run.events("judge")) if event["round"] == opponent)
    start = None if session.family.start else found["base_real"]
    was, now = next(judged, start if opponent == 0 else None), found["opponent_real"]
    if was is None or abs(now - was) < OTHER * was:
        return None
    return f"round {k}'s opponent was not snapshot {opponent}: its error on unseen pictures is {now:.4f}, and was {was:.4f}"


def _samples(session: Session, k: int, title: str) -> tuple[dict[str, float], bool]:
    """Sample the held-out captions and write the sheet; returns (figures for the journal, whether clips lost their motion)."""
    count = min(session.settings.judge.captions, len(session.heldout))
    shown = [session.heldout[i * len(session.heldout) // count] for i in range(count)]

    def each(fakes: Fakes, records: list[Record]) -> list[Tensor]:
        return [fakes([record])[0] for record in records]

    base = session.sample_snapshot("base", 0, session.heldout, title + " (samples)", "heldout")
    rounds = {
        j: session.sample_snapshot("opponent", j, session.heldout, title + " (samples)", "heldout") for j in _between(k - 1)
    } | {k: session.sample_snapshot("policy", k, session.heldout, title + " (samples)", "heldout")}  # fmt: skip
    start = {"your LoRA" if session.family.start else "the base": rounds[0]}
    real, now = session.encoded.real, rounds[k]
    sides = start | {f"after round {k}": now, "your pictures, held out": real}
    way = start | {f"round {j}": fakes for j, fakes in rounds.items() if j} | {"your picture": real}
    _sheet(
        session, k, shown, {label: each(fakes, shown) for label, fakes in sides.items()},
        [{label: each(fakes, [record])[0] for label, fakes in way.items()} for record in _changed(shown, rounds[0], now)],
    )  # fmt: skip
    samples, reals = each(now, session.heldout), each(real, session.heldout)
    shift, spread = drift(each(base, session.heldout), samples)
    away_mean, away_deviation = drift(reals, samples)
    found = {"drift_mean": shift, "drift_deviation": spread, "away_mean": away_mean, "away_deviation": away_deviation}
    if (moves := share(samples, reals)) is not None:
        found["motion"] = moves
    return found, has_stopped(reals, each(rounds[0], session.heldout), samples)


def _distances(session: Session, k: int) -> tuple[dict[str, float], bool]:
    """How far samples for training captions are from their pictures: (figures for the journal, whether further than at first).

    Further than at the start, by more than chance explains: training did the opposite of what it is for.
    """
    start, now = (
        energy_distance(*([latents([r])[0] for r in records] for latents in (samples, session.encoded.real)))
        for records, samples in (session.samples_before(), session.samples_after(k))
    )
    if not start or not now:
        return {}, False
    found = {"start_distance": start.value, "distance": now.value, "distance_error": now.error}
    return found, now.is_above(start)


def _between(last: int) -> list[int]:
    """The rounds of the way that are shown, from the start on, as many as a sheet has room for."""
    return _spread(list(range(last + 1)), WAY)


def _changed(shown: list[Record], before: Fakes, after: Fakes) -> list[Record]:
    """Those whose samples have changed most, in their order: they show the way best."""
    moved = {r.key + r.caption: (after([r]) - before([r])).square().mean().item() for r in shown}
    most = sorted(moved, key=lambda key: -moved[key])[:STRIPS]
    return [r for r in shown if r.key + r.caption in most]


def _spread(items: list[T], most: int) -> list[T]:
    """The first, the last and others between, evenly: `most` of them at the most."""
    if len(items) <= most:
        return items
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _sheet(
    session: Session, k: int, shown: list[Record], sides: dict[str, list[Tensor]], strips: list[dict[str, Tensor]]
) -> None:
    """Draw the sheet; `sides` are those of the start, of round k and of the real pictures."""
    if not processes.leads():
        return
    rows = [*sides.values(), *(list(strip.values()) for strip in strips)]

    def decode(levers: Levers) -> list[list[Drawn]]:
        return [decode_latents(session.family, row, levers.play_batch) for row in rows]

    try:
        made = session.fallback.run("sheet", len(shown), decode)
    except SpinliteError as error:  # it is for looking at alone: the run does without
        session.watch.say(f"no sample sheet of round {k}: {error.problem}")
        return
    finally:
        session.family.free()
    name = f"{session.run.name} · round {k} of {session.settings.run.rounds} · {session.settings.method['name']}"
    stills = [list(map(strip, row)) for row in made]
    below = [dict(zip(way, row, strict=True)) for way, row in zip(strips, stills[len(sides) :], strict=True)]
    path = session.run.sheet_path(k)
    write_panels(path, name, [r.caption for r in shown], dict(zip(sides, stills, strict=False)), below)
    if session.family.clips and any(is_clip(drawn) for row in made for drawn in row):
        fps = session.settings.data.fps or session.family.clips.fps
        write_animation(path.with_suffix(".webp"), dict(zip(sides, made, strict=False)), fps)
    for round_, pictures in ((0, stills[0]), (k, stills[1])):
        _cells(session, round_, shown, pictures)


def _cells(session: Session, k: int, shown: list[Record], pictures: list[Image]) -> None:
    """Keep pictures of held-out captions as files. Their noise has names, so they have no seed that a WebUI knows."""
    play, drawn = session.settings.drawn, []
    for record, picture in zip(shown, pictures, strict=True):
        width, height = (record.bucket or session.family.size)[:2]
        prompt = Prompt(text=record.caption, width=width, height=height, steps=play.steps, guidance=play.guidance)
        drawn.append((prompt, tell(session, k, prompt), picture))
    folder = session.run.cells_path(k)
    if k or [cell.parameters for cell in read_cells(folder, "heldout")] != [text for _, text, _ in drawn]:
        write_cells(folder, "heldout", drawn)
