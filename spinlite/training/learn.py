"""The learning of one round: from the snapshot before, or from where it was cut off, to its end."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from spinlite.config.settings import Learn
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.maths.auto_beta import automatic_beta, running_mean
from spinlite.memory.device import Levers, averaged_weights, training_weights
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.runs.run import update_of
from spinlite.runs.store import read_tensors
from spinlite.runs.trees import optimizer_tree, restore_optimizer
from spinlite.training.batches import Batch, Batches, Errors, FakePaths, Fakes
from spinlite.training.guards import LONG, PAIRS, Diverged, Figures, find_alarm, keep_recent, pull, updates_for, won
from spinlite.training.opponent_errors import known_errors
from spinlite.training.probe import probe
from spinlite.training.session import Session
from spinlite.training.step import figures, margins, step

SAVE_SECONDS = 10.0  # of learning that a cut-off run may lose, and the update under way


@dataclass
class LearnState:
    """Where a round's learning stands; with the policy and the optimizer, all that a resume needs."""

    update: int = 0
    norm: float | None = None  # running mean of gradient norms
    margin: float | None = None  # running mean of |margin|, weighed, where beta is found
    level: float | None = None  # the same of the opponent's error on real
    recent: list[Figures] = field(default_factory=list)  # of the last updates, for the guards

    def method(self, method: Method, aim: float) -> Method:
        """The method with the beta that the round has come to, where beta is found."""
        if not aim or "beta" not in {f.name for f in fields(method)} or self.margin is None or self.level is None:
            return method
        return replace(method, beta=automatic_beta(self.margin, self.level, aim))  # pyright: ignore[reportCallIssue]

    def take_in(self, errors: Errors, weight: Tensor | None) -> None:
        """Take in the pairs of an update."""
        if "opponent_fake" not in errors:
            return
        weight = torch.ones_like(errors["policy_real"]) if weight is None else weight.to(errors["policy_real"].device)
        margin = weight * margins(errors)
        self.margin = running_mean(self.margin, margin.abs())
        self.level = running_mean(self.level, weight * errors["opponent_real"])


def learn_round(session: Session, k: int, fakes: Fakes | None) -> str | None:
    """Bring the policy to the end of round k, or where a guard acts back to how it was before that; returns why it did.

    Raises SpinliteError where the policy as its own opponent does not lose what it must, and Diverged where a guard acts and
    the policy was kept nowhere within the round before.
    """
    state, paths = _resume(session, k), session.fake_paths(k)
    if state.update == 0 and session.method.opponent:
        probe(session, k, fakes, paths)
    try:
        _learn(session, k, state, fakes, paths)
    except Diverged as error:
        kept = session.run.good_policies() | {
            update_of(snapshot): session.run.snapshot_path(snapshot) for snapshot in session.run.snapshots_within(k)
        }
        back = max((u for u in kept if u <= error.update - updates_for(PAIRS, session.settings.learn.batch)), default=0)
        if not back:
            raise
        session.slots.load("policy", read_tensors(kept[back])[0])
        return undo(session, k, error, back)
    if state.update < session.settings.learn.updates:
        session.run.log("won", round=k, update=state.update)
        session.watch.say(
            f"round {k} ends after {state.update} of {session.settings.learn.updates} updates: all its pairs are won"
        )
    return None


def undo(session: Session, k: int, error: Diverged, update: int = 0) -> str:
    """Round k is taken back to an update, or to its start; returns why and how, in words."""
    back = f"update {update} of round {k}" if update else f"the end of round {k - 1}" if k > 1 else "the start"
    said = f"{error}, after update {error.update} of round {k}; rolled back to {back}"
    session.run.undo(k, update)
    session.run.log("guard", round=k, update=error.update, guard=error.guard, why=str(error), back=update)
    session.watch.say(said)
    return said


def _resume(session: Session, k: int) -> LearnState:
    """The policy as it stands in round k: from the state, or as the previous snapshot left it."""
    if session.run.state.get("round") == k and session.run.state["update"] > 0:
        session.slots.load("policy", session.run.tensors()["policy"])
        return LearnState(**{f.name: session.run.state[f.name] for f in fields(LearnState)})
    session.slots.load("policy", session.load_snapshot(k - 1))
    return LearnState()


def _learn(session: Session, k: int, state: LearnState, fakes: Fakes | None, paths: FakePaths | None) -> None:
    settings = session.settings.learn
    optimizer = session.device.optimizer(settings.optimizer, session.slots.parameters(), settings.rate)
    if state.update:
        restore_optimizer(optimizer, session.run.tensors().get("optimizer", {}))
    drawn, seed = session.settings.draw, session.settings.run.seed
    batches = Batches(session.family, session.encoded, session.train, fakes, settings, seed, k, drawn, paths)
    batches.known = known_errors(session, k, batches)
    good_every = updates_for(LONG, settings.batch) if session.settings.judge.stop else 0
    saved = time.monotonic()
    with session.watch.phase(session.title(k, "learn"), settings.updates) as progress:

        def after(found: dict[str, float]) -> None:
            nonlocal saved
            session.run.log("update", round=k, **found)
            progress(state.update, settings.updates, **found)
            due, good = (bool(every) and state.update % every == 0 for every in (settings.snapshot_every, good_every))
            if (due or good) and state.update < settings.updates:
                with averaged_weights(optimizer):
                    if due:
                        session.save_snapshot(f"{k}-{state.update}")
                    if good:
                        session.run.keep_good_policy(state.update, session.slots.state("policy"))
            if time.monotonic() - saved >= SAVE_SECONDS:
                tensors = {"policy": session.slots.state("policy"), "optimizer": optimizer_tree(optimizer)}
                session.run.save(tensors, round=k, stopped=None, **asdict(state))
                saved = time.monotonic()

        with training_weights(optimizer):
            guarded = session.settings.judge.stop
            learn(
                session.family, session.slots, session.method, batches, optimizer, settings, session.fallback, state, after,
                guarded,
            )  # fmt: skip


def learning_rate(settings: Learn, update: int) -> float:
    """The rate of an update of a round, from 0: it rises over the first 5 % and falls to 0 along a cosine.

    A round ends in a snapshot, and a snapshot taken at full rate is a noisy one. Schedule-free averages its steps instead.
    """
    rise = min(1.0, (update + 1) / max(1, settings.updates // 20))
    fall = 1.0 if settings.optimizer == "schedulefree" else 0.5 + 0.5 * math.cos(math.pi * update / settings.updates)
    return settings.rate * rise * fall


def learn(
    family: Family, slots: Slots, method: Method, batches: Batches, optimizer: torch.optim.Optimizer, settings: Learn,
    fallback: Fallback, state: LearnState, after: Callable[[dict[str, float]], None], guarded: bool = True,
) -> None:  # fmt: skip
    """Bring the policy from `state.update` to the round's end; `after` each update is given its figures. Where it is `guarded`,
    a round whose pairs are all won ends sooner.

    A gradient longer than 3 x the running mean of their norms is shortened to that: unlike a fixed limit this means the same
    for every beta, method and model.

    Where memory runs out in a step, its gradients are dropped and the same draws are stepped again with a cheaper setting.
    Where beta is found (`settings.aim`), the loss is divided by it, so that its changes don't change the gradients' size.
    Raises Diverged where a guard acts; where it is that of numbers, the policy and `state` are as they were before that update.
    """
    parameters = slots.parameters()

    def attempt(levers: Levers) -> tuple[Tensor, Errors, dict[str, float]]:
        optimizer.zero_grad(set_to_none=True)
        family.set_checkpointing(levers.checkpointing)
        return _update(family, slots, method, batches.for_update(state.update), levers, settings, state)

    while state.update < settings.updates and not (guarded and won(state.recent, settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, state.update)
        loss, errors, found = fallback.run("learn", settings.batch, attempt)
        limit = 3 * state.norm if state.norm else float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not (torch.isfinite(loss) and norm < float("inf")):
            problem = f"the loss ({loss.item():.3g}) or its gradient ({norm:.3g}) is not a number"
            raise Diverged("numbers", problem, state.update)
        optimizer.step()
        clipped = min(norm, limit)
        state.norm = clipped if state.norm is None else 0.9 * state.norm + 0.1 * clipped
        state.update += 1
        measured = figures(errors) | found
        state.recent = keep_recent([*state.recent, measured], settings.batch)
        after({"update": state.update, "loss": loss.item(), "grad_norm": norm, **measured})
        if guarded and (problem := find_alarm(state.recent, settings.batch, method.fakes == "played")):
            raise Diverged(*problem, state.update)


def _update(
    family: Family, slots: Slots, method: Method, shapes: Sequence[Batch], levers: Levers, settings: Learn, state: LearnState
) -> tuple[Tensor, Errors, dict[str, float]]:
    """Add the gradient of an update's samples, those of one shape after the other; returns (loss, errors, further figures)."""
    now = state.method(method, settings.aim)
    beta = getattr(now, "beta", 1.0) if settings.aim else 1.0
    loss, found = torch.zeros(()), []
    for batch in shapes:  # the mean over an update's samples is that of its shapes' means, each weighed by its share
        share = len(batch.t) / settings.batch
        part, errors = step(family, slots, now, batch, levers.one_graph, levers.micro_batch, share / beta)
        loss, found = loss + part.cpu(), [*found, errors]
    errors = {name: torch.cat([each[name] for each in found]) for name in found[0]}
    weights = [batch.weight for batch in shapes if batch.weight is not None]
    weight = torch.cat(weights) if weights else None
    if settings.aim:
        state.take_in(errors, weight)
    told = {"beta": beta} if settings.aim else {}
    if "opponent_fake" in errors:
        told["pull"] = pull(now, errors, weight)
    return loss * beta, errors, told
