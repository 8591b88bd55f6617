"""The self-check at the start of a round: a policy that is its opponent must lose what equal errors lose."""

import math

import torch

from spinlite.data.encoded import runs
from spinlite.errors import SpinliteError
from spinlite.training.batches import Errors, Fakes, Walks, make_batch
from spinlite.training.session import Game
from spinlite.training.step import asked, measure

APART = 0.01  # of the opponent's error on real: the squared distance that precision and batches may put between its predictions


def probe(game: Game, k: int, fakes: Fakes | None, walks: Walks | None) -> None:
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
