"""The self-check at the start of a round: while the policy equals its opponent, the loss has a known value.

For SPIN, SePPO and DPO this value is log 2 = 0.6931. A wrong LoRA, unequal noise, dropout or lost precision changes it.
"""

import math
from collections.abc import Callable, Sequence

import torch

from spinlite.data.groups import group_by_shape
from spinlite.errors import SpinliteError
from spinlite.runs.snapshots import SnapshotName
from spinlite.training.batches import Batch, Errors, FakePaths, Fakes, make_batch
from spinlite.training.session import Session
from spinlite.training.step import measure, required_errors

APART = 0.01  # share of the opponent's error on real; precision and batch sizes move its predictions by less (squared distance)


def probe(session: Session, k: int, fakes: Fakes | None, paths: FakePaths | None) -> None:
    """Measure one batch while policy and opponent are the same snapshot, and compare the loss with its value for equal errors.

    With fakes on their sampling paths it also checks that the opponent still predicts what was kept while it played.
    Raises SpinliteError if either check fails.
    """
    session.load_opponent(k - 1)
    opponent, records = next(iter(session.opponents(k).items()))
    rows = [(record, 0) for record in records[: session.settings.learn.batch]]
    batches = [
        make_batch(
            session.family, session.encoded, [rows[i] for i in group], fakes, None, ("probe", k), session.settings.draw, paths
        )
        for group in group_by_shape([record.bucket for record, _ in rows], len(rows))
    ]

    def errors_with(names: list[str]) -> Errors:
        return session.fallback.run("opponent", len(rows), lambda levers: _errors(session, batches, names, levers.play_batch))

    errors = errors_with(required_errors(session.method))
    loss = session.method.loss(**errors).mean().item()
    session.run.log("probe", round=k, loss=loss)
    equal = {name: errors[name.replace("policy", "opponent")] for name in errors}
    expected = session.method.loss(**equal).mean().item()
    if not abs(loss - expected) < 1e-3:
        value = "log 2 = 0.6931" if math.isclose(expected, math.log(2), abs_tol=1e-6) else f"{expected:.4f}"
        raise SpinliteError(
            f"self-check failed: while the policy equals its opponent the loss must be {value}, but it is {loss:.4f}",
            fix="this is a bug (the two see different weights, noise or dropout): report it with the run's settings.toml",
        )
    if paths:
        _probe_paths(session, k, opponent, errors_with)


@torch.no_grad()
def _errors(session: Session, batches: Sequence[Batch], names: list[str], size: int) -> Errors:
    """The named errors of all samples; `size` of them go through the network together."""
    parts = [part for batch in batches for part in batch.parts(size)]
    errors = [{name: measure(session.family, session.slots, name, part) for name in names} for part in parts]
    return {name: torch.cat([of_part[name] for of_part in errors]) for name in names}


def _probe_paths(session: Session, k: int, opponent: SnapshotName, errors_with: Callable[[list[str]], Errors]) -> None:
    """Check that the opponent predicts on its fakes' paths what it predicted while it played."""
    session.load_opponent(opponent)
    errors = errors_with(["opponent_real", "opponent_fake"])
    apart = errors["opponent_fake"].mean().item() / errors["opponent_real"].mean().item()  # on a path: distance from then
    session.run.log("probe", round=k, apart=apart)
    if not apart < APART:
        raise SpinliteError(
            "the opponent no longer predicts what it did while it played: its predictions differ by "
            f"{apart:.1%} of its error on real pictures",
            fix=f"delete the folder {session.run.cache / 'fake'} and run the same command",
        )
