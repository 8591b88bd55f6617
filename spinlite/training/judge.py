"""The end of a round: what the held-out pictures say of the policy, and its sample sheet."""

import torch
from PIL.Image import Image
from torch import Tensor

from spinlite.data.encoded import runs
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.memory.device import Levers
from spinlite.progress import Progress
from spinlite.training.batches import Fakes
from spinlite.training.guards import Diverged
from spinlite.training.heldout import drift, grew, heldout_errors, strayed
from spinlite.training.session import Game
from spinlite.training.sheet import sheet
from spinlite.training.step import figures

OTHER = 0.01  # of a held-out error: more apart than precision and batches put two measurements of one snapshot
_ASTRAY = "after round {} the colours or the contrast of samples are further from your pictures than at the start"
ERRORS = ["policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real"]


def judge(game: Game, k: int, fakes: Fakes) -> str | None:
    """Measure round k, journal it, draw its sheet; returns why the run must stop, if it must."""
    title = game.title(k, "judge")
    settings = game.settings.judge

    def errors(names: list[str], progress: Progress) -> dict[str, Tensor]:
        return game.fallback.run("judge", len(game.heldout) * settings.draws, lambda levers: heldout_errors(
            game.family, game.slots, game.encoded, game.heldout, fakes, names, settings.draws, levers.play_batch, progress
        ))  # fmt: skip

    game.enter(game.rival(k))
    with game.watch.phase(title, len(game.heldout) * settings.draws) as progress:
        measured = errors(ERRORS, progress)
    previous = measured["opponent_real"]
    if game.rival(k) != k - 1:
        game.enter(k - 1)
        previous = errors(["opponent_real"], lambda done, of: None)["opponent_real"]
    if not measured["policy_real"].isfinite().all():
        raise Diverged("numbers", "the held-out error is not a number", game.settings.learn.updates)
    moved, astray = _samples(game, k, title)
    found = {**figures(measured), "previous_real": previous.mean().item(), **moved}
    why = _grown(k, previous, measured["policy_real"]) or _impostor(game, k, found) or (_ASTRAY.format(k) if astray else None)
    stopped = why if settings.stop else None
    rivals = {str(rung): len(records) for rung, records in game.rivals(k).items()}
    game.run.log("judge", round=k, opponent=game.rival(k), opponents=rivals, stopped=stopped, **found)
    game.watch.judged(k, game.settings.run.rounds, found)
    return stopped


def _grown(k: int, previous: Tensor, now: Tensor) -> str | None:
    if not grew(previous, now):
        return None
    return f"the held-out error on real pictures grew in round {k} ({previous.mean():.4f} to {now.mean():.4f})"


def _impostor(game: Game, k: int, found: dict[str, float]) -> str | None:
    """An opponent is a snapshot: its held-out error, of the same draws, must be what it was when that was judged."""
    rival = game.rival(k)
    known = {event["round"]: event["policy_real"] for event in game.run.events("judge")}
    if not game.family.start:
        known[0] = found["base_real"]
    was, now = known.get(rival), found["opponent_real"]
    if was is None or abs(now - was) < OTHER * was:
        return None
    return f"round {k}'s opponent was not snapshot {rival}: its held-out error is {now:.4f}, and was {was:.4f}"


def _samples(game: Game, k: int, title: str) -> tuple[dict[str, float], bool]:
    """The sheet of round k; returns the drift of the policy's samples from the base's and from the held-out pictures, and
    whether they have strayed from these."""
    count = min(game.settings.judge.prompts, len(game.heldout))
    shown = [game.heldout[i * len(game.heldout) // count] for i in range(count)]

    def each(fakes: Fakes, records: list[Record]) -> list[Tensor]:
        return [fakes([record])[0] for record in records]

    base = game.played("base", 0, game.heldout, title + " (samples)", "heldout")
    before = game.played("opponent", k - 1, game.heldout, title + " (samples)", "heldout")
    now = game.played("policy", k, game.heldout, title + " (samples)", "heldout")
    latents = {
        "base": each(base, shown),
        "previous" if k > 1 else "your LoRA" if game.family.start else "previous (base)": each(before, shown),
        f"round {k} (current)": each(now, shown),
        "your picture, held out": each(game.encoded.real, shown),
    }
    _sheet(game, k, [r.caption for r in shown], latents)
    start = game.played("opponent", 0, game.heldout, title + " (samples)", "heldout")
    real, samples = each(game.encoded.real, game.heldout), each(now, game.heldout)
    shift, spread = drift(each(base, game.heldout), samples)
    away_mean, away_deviation = drift(real, samples)
    found = {"drift_mean": shift, "drift_deviation": spread, "away_mean": away_mean, "away_deviation": away_deviation}
    return found, strayed(real, each(start, game.heldout), samples)


def _sheet(game: Game, k: int, captions: list[str], latents: dict[str, list[Tensor]]) -> None:
    def decode(levers: Levers) -> dict[str, list[Image]]:
        return {label: decoded(game.family, rows, levers.play_batch) for label, rows in latents.items()}

    try:
        rows = game.fallback.run("sheet", len(captions), decode)
    except SpinliteError as error:  # it is for looking at alone: the run does without
        game.watch.say(f"no sample sheet of round {k}: {error.problem}")
        return
    finally:
        game.family.free()
    name = f"{game.run.name} · round {k} of {game.settings.run.rounds} · {game.settings.method['name']}"
    sheet(game.run.sheet(k), name, captions, rows)


def decoded(family: Family, latents: list[Tensor], batch: int) -> list[Image]:
    """Latents, (C, ...) each, of whatever shapes -> their pictures; `batch` of one shape are decoded at once."""
    found: dict[int, Image] = {}
    for run in runs([x.shape for x in latents], batch):
        found |= zip(run, family.decode(torch.stack([latents[i] for i in run])), strict=True)
    return [found[i] for i in range(len(latents))]
