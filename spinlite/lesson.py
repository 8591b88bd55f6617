"""The learning of one round: from the snapshot before, or from where it was cut off, to its end."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch

from spinlite.ahead import errors_ahead
from spinlite.batches import Batches, Errors, Fakes, Walks, make_batch
from spinlite.data import Progress, runs
from spinlite.device import averaged, learning
from spinlite.errors import SpinliteError
from spinlite.game import Game
from spinlite.guards import LONG, PAIRS, Diverged, updates
from spinlite.learn import Progressed, asked, learn, measure
from spinlite.play import fake_key
from spinlite.run import Rung, update_of
from spinlite.store import fingerprint, fingerprint_files, read
from spinlite.trees import optimizer_tree, restore_optimizer

SAVE_SECONDS = 10.0  # of learning that a cut-off run may lose, and the update under way
APART = 0.01  # of the opponent's error on real: the squared distance that precision and batches may put between its predictions


def lesson(game: Game, k: int, fakes: Fakes | None) -> str | None:
    """Bring the policy to the end of round k, or where a guard acts back to how it was before that; returns why it did.

    Raises SpinliteError where the policy as its own opponent does not lose what it must, and Diverged where a guard acts and
    the policy was kept nowhere within the round before.
    """
    state, walks = _resume(game, k), game.walks(k)
    if state.update == 0 and game.method.opponent:
        _probe(game, k, fakes, walks)
    try:
        _learn(game, k, state, fakes, walks)
    except Diverged as error:
        kept = game.run.sound() | {update_of(rung): game.run.snapshot(rung) for rung in game.run.rungs(k)}
        back = max((u for u in kept if u <= error.update - updates(PAIRS, game.settings.learn.batch)), default=0)
        if not back:
            raise
        game.slots.load("policy", read(kept[back])[0])
        return undo(game, k, error, back)
    if state.update < game.settings.learn.updates:
        game.run.log("won", round=k, update=state.update)
        game.watch.say(f"round {k} ends after {state.update} of {game.settings.learn.updates} updates: all its pairs are won")
    return None


def undo(game: Game, k: int, error: Diverged, update: int = 0) -> str:
    """Round k is taken back to an update, or to its start; returns why and how, in words."""
    back = f"update {update} of round {k}" if update else f"the end of round {k - 1}" if k > 1 else "the start"
    said = f"{error}, after update {error.update} of round {k}; rolled back to {back}"
    game.run.undo(k, update)
    game.run.log("guard", round=k, update=error.update, guard=error.guard, why=str(error), back=update)
    game.watch.say(said)
    return said


def _resume(game: Game, k: int) -> Progressed:
    """The policy as it stands in round k: from the state, or as the previous snapshot left it."""
    if game.run.state.get("round") == k and game.run.state["update"] > 0:
        game.slots.load("policy", game.run.tensors()["policy"])
        return Progressed(**{f.name: game.run.state[f.name] for f in fields(Progressed)})
    game.slots.load("policy", game.ladder(k - 1))
    return Progressed()


def _probe(game: Game, k: int, fakes: Fakes | None, walks: Walks | None) -> None:
    """Where the policy is its opponent, a preference loses log 2, and every method what it loses for equal errors.

    A wrong adapter, other noise or dropout shows here; and where fakes are met on their paths, predictions kept of another
    network, time or caption.
    """
    game.enter(k - 1)
    rival, records = next(iter(game.rivals(k).items()))
    rows = [(record, 0) for record in records[: game.settings.learn.batch]]
    batches = [
        make_batch(game.family, game.encoded, [rows[i] for i in run], fakes, None, ("probe", k), game.settings.draw, walks)
        for run in runs([record.bucket for record, _ in rows], len(rows))
    ]

    @torch.no_grad()
    def errors(size: int, names: list[str]) -> Errors:
        every = (part for batch in batches for part in batch.parts(size))
        parts = [{n: measure(game.family, game.slots, n, part) for n in names} for part in every]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    found = game.fallback.run("opponent", len(rows), lambda levers: errors(levers.play_batch, asked(game.method)))
    loss = game.method.loss(**found).mean().item()
    game.run.log("probe", round=k, loss=loss)
    equal = {name: found[name.replace("policy", "opponent")] for name in found}
    expected = game.method.loss(**equal).mean().item()
    if not abs(loss - expected) < 1e-3:
        named = "log 2 = 0.6931" if math.isclose(expected, math.log(2), abs_tol=1e-6) else f"{expected:.4f}"
        raise SpinliteError(
            f"with the policy equal to its opponent the loss must be {named}, but is {loss:.4f}",
            fix="the two see different weights, noise or dropout: report this with the run's settings.toml",
        )
    if walks:
        game.enter(rival)
        both = ["opponent_real", "opponent_fake"]
        again = game.fallback.run("opponent", len(rows), lambda levers: errors(levers.play_batch, both))
        apart = again["opponent_fake"].mean().item() / again["opponent_real"].mean().item()
        game.run.log("probe", round=k, apart=apart)
        if not apart < APART:
            raise SpinliteError(
                f"the opponent no longer predicts what it did while it played ({apart:.1%} of its error on real apart)",
                fix="delete the folder cache/fake beside the run, and run the same command",
            )


def _learn(game: Game, k: int, state: Progressed, fakes: Fakes | None, walks: Walks | None) -> None:
    settings = game.settings.learn
    optimizer = game.device.optimizer(settings.optimizer, game.slots.parameters(), settings.rate)
    if state.update:
        restore_optimizer(optimizer, game.run.tensors().get("optimizer", {}))
    drawn, seed = game.settings.draw, game.settings.run.seed
    batches = Batches(game.family, game.encoded, game.train, fakes, settings, seed, k, drawn, walks)
    batches.known = _ahead(game, k, batches)
    sound_every = updates(LONG, settings.batch) if game.settings.judge.stop else 0
    saved = time.monotonic()
    with game.watch.phase(game.title(k, "learn"), settings.updates) as progress:

        def after(found: dict[str, float]) -> None:
            nonlocal saved
            game.run.log("update", round=k, **found)
            progress(state.update, settings.updates, **found)
            rung, sound = (bool(every) and state.update % every == 0 for every in (settings.snapshot_every, sound_every))
            if (rung or sound) and state.update < settings.updates:
                with averaged(optimizer):
                    if rung:
                        game.keep(f"{k}-{state.update}")
                    if sound:
                        game.run.keep_sound(state.update, game.slots.state("policy"))
            if time.monotonic() - saved >= SAVE_SECONDS:
                tensors = {"policy": game.slots.state("policy"), "optimizer": optimizer_tree(optimizer)}
                game.run.save(tensors, round=k, stopped=None, **asdict(state))
                saved = time.monotonic()

        with learning(optimizer):
            guarded = game.settings.judge.stop
            learn(game.family, game.slots, game.method, batches, optimizer, settings, game.fallback, state, after, guarded)


def _ahead(game: Game, k: int, batches: Batches) -> Errors:
    """The opponent's errors of the round's draws, where they are measured ahead, as they are where there are several opponents:
    a step needs none then. Else none, and the opponent has entered."""
    rivals = game.rivals(k)
    names = [n for n in asked(game.method) if not n.startswith("policy") and not (batches.walks and n.endswith("fake"))]
    if not names or not (game.device.levers.cache_opponent or len(rivals) > 1):
        game.enter(game.rival(k))
        return {}
    place_of: dict[Rung, list[int]] = {rung: [] for rung in rivals}
    rung_of = {fake_key(record): rung for rung, records in rivals.items() for record in records}
    for place, (record, _) in enumerate(batches.rows(range(batches.draws))):
        place_of[rung_of[fake_key(record)]].append(place)
    known, done = {name: torch.empty(batches.draws) for name in names}, 0
    with game.watch.phase(game.title(k, "opponent"), batches.draws) as progress:
        for rung, places in place_of.items():
            game.enter(rung)
            found = _ahead_of(game, k, rung, names, batches, places, partial(_shifted, progress, done, batches.draws))
            done += len(places)
            for name in names:
                known[name][places] = found[name]
    return known


def _shifted(progress: Callable[..., None], start: int, of: int, done: int, _: int) -> None:
    progress(start + done, of)


def _ahead_of(
    game: Game, k: int, rung: Rung, names: Sequence[str], batches: Batches, places: Sequence[int], progress: Progress
) -> Errors:
    """The errors of one opponent, which has entered, at its places."""
    path = _ahead_file(game, k, rung, names)
    return game.fallback.run("opponent", len(places), lambda levers: errors_ahead(
        game.family, game.slots, names, batches, places, path, levers.play_batch, progress
    ))  # fmt: skip


def _ahead_file(game: Game, k: int, rung: Rung, names: Sequence[str]) -> Path:
    """Named by all that its numbers depend on."""
    levers, settings = game.device.levers, game.settings
    who = [game.family.base_hash, fingerprint_files([game.run.snapshot(rung)]), levers.precision, levers.quantize]
    data = [[r.key, r.lose_key, r.caption] for r in game.train]
    draws = [settings.learn.updates, settings.learn.batch, settings.learn.caption_dropout, settings.run.seed, k]
    how = [game.method.opponent, game.method.fakes, settings.play.model_dump(), settings.draw.model_dump()]
    return game.run.ahead(fingerprint(who, names, data, draws, how))
