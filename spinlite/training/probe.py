"""The self-check at the start of a round: a policy that is its opponent must lose what equal errors lose."""

import math
from collections.abc import Callable, Sequence

import torch

from spinlite.data.encoded import group_by_shape
from spinlite.errors import SpinliteError
from spinlite.runs.run import SnapshotName
from spinlite.training.batches import Batch, Errors, FakePaths, Fakes, make_batch
from spinlite.training.session import Session
from spinlite.training.step import measure, required_errors

APART = 0.01  # of the opponent's error on real: the squared distance that precision and batches may put between its predictions


def probe(session: Session, k: int, fakes: Fakes | None, paths: FakePaths | None) -> None:
    """Where the policy is its opponent, a preference loses log 2, and every method what it loses for equal errors.

    A wrong adapter, other noise or dropout shows here; and where fakes are met on their paths, predictions kept of another
    network, time or caption.
    """
    session.load_opponent(k - 1)
    opponent, records = next(iter(session.opponents(k).items()))
    rows = [(record, 0) for record in records[: session.settings.learn.batch]]
    batches = [
        make_batch(
            session.family, session.encoded, [rows[i] for i in run], fakes, None, ("probe", k), session.settings.draw, paths
        )
        for run in group_by_shape([record.bucket for record, _ in rows], len(rows))
    ]

    def errors_with(names: list[str]) -> Errors:
        return session.fallback.run("opponent", len(rows), lambda levers: _errors(session, batches, names, levers.play_batch))

    found = errors_with(required_errors(session.method))
    loss = session.method.loss(**found).mean().item()
    session.run.log("probe", round=k, loss=loss)
    equal = {name: found[name.replace("policy", "opponent")] for name in found}
    expected = session.method.loss(**equal).mean().item()
    if not abs(loss - expected) < 1e-3:
        named = "log 2 = 0.6931" if math.isclose(expected, math.log(2), abs_tol=1e-6) else f"{expected:.4f}"
        raise SpinliteError(
            f"with the policy equal to its opponent the loss must be {named}, but is {loss:.4f}",
            fix="the two see different weights, noise or dropout: report this with the run's settings.toml",
        )
    if paths:
        _probe_paths(session, k, opponent, errors_with)


@torch.no_grad()
def _errors(session: Session, batches: Sequence[Batch], names: list[str], size: int) -> Errors:
    """The named errors of all samples, `size` of them at once."""
    every = (part for batch in batches for part in batch.parts(size))
    parts = [{n: measure(session.family, session.slots, n, part) for n in names} for part in every]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _probe_paths(session: Session, k: int, opponent: SnapshotName, errors_with: Callable[[list[str]], Errors]) -> None:
    """The opponent must predict on its fakes' paths what it did while it played."""
    session.load_opponent(opponent)
    again = errors_with(["opponent_real", "opponent_fake"])
    apart = again["opponent_fake"].mean().item() / again["opponent_real"].mean().item()
    session.run.log("probe", round=k, apart=apart)
    if not apart < APART:
        raise SpinliteError(
            f"the opponent no longer predicts what it did while it played ({apart:.1%} of its error on real apart)",
            fix="delete the folder cache/fake beside the run, and run the same command",
        )
