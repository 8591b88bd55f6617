"""The learning of one round, from top to bottom:

learn_round -> _resume (the policy as it stands), probe (the self-check at a round's start), _learn (batches, optimizer, what is
saved on the way) -> learn (the loop over updates) -> _add_gradient (one update's pictures) -> step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spinlite.config.rounds import learning_rate
from spinlite.config.settings import Learn
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.memory import processes
from spinlite.memory.device import Levers, averaged_weights, training_weights
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.progress import Stopped
from spinlite.runs.snapshots import update_of
from spinlite.runs.store import read_tensors
from spinlite.runs.trees import optimizer_tree, restore_optimizer
from spinlite.training.average import Average
from spinlite.training.batches import Batch, Batches, Errors, FakePaths, Fakes
from spinlite.training.fakes import compare_with_real, warn_of_few_steps
from spinlite.training.guards import LONG, PAIRS, Diverged, keep_recent, look_out, pull, updates_for, won
from spinlite.training.learn_state import LearnState
from spinlite.training.opponent_errors import known_errors
from spinlite.training.probe import probe
from spinlite.training.session import Session
from spinlite.training.step import figures, step

T = TypeVar("T")
SAVE_SECONDS = 10.0  # a run that is killed loses at most so much learning, and the update under way
CHEAP_SAVE = 0.1  # seconds: a save that takes longer comes as much less often, so that saving takes 1 % of the time at the most


def learn_round(session: Session, k: int, fakes: Fakes | None) -> str | None:
    """Train the policy to the end of round k. Returns None, or the reason why a guard took the round back to an earlier update.

    The policy after that is the one to keep. Raises SpinliteError if the self-check fails, and Diverged if a guard acts before
    any policy of this round was kept.
    """
    state, paths = _resume(session, k), session.fake_paths(k)
    if state.update == 0:
        if session.method.opponent:
            probe(session, k, fakes, paths)
        if fakes:
            compare_with_real(session, k, fakes)
        if k == 1 and session.method.fakes == "played":
            warn_of_few_steps(session)
    try:
        _learn(session, k, state, fakes, paths)
    except Diverged as error:
        return _go_back(session, k, error)
    updates = session.settings.learn.length
    if state.update < updates:
        session.run.log("won", round=k, update=state.update)
        session.watch.say(
            f"round {k} ends early, after {state.update} of {updates} updates: the policy has won all its pairs, so they have "
            "nothing left to teach"
        )
    return None


def _go_back(session: Session, k: int, error: Diverged) -> str:
    """Load the latest policy of round k that was kept before the alarm's pairs; raises the alarm again if there is none."""
    kept = session.run.good.paths()
    kept |= {update_of(snapshot): session.run.snapshot_path(snapshot) for snapshot in session.run.snapshots_within(k)}
    alarm_began = error.update - updates_for(PAIRS, session.settings.learn.batch)
    back = max((update for update in kept if update <= alarm_began), default=0)
    if not back:
        raise error
    session.slots.load("policy", read_tensors(kept[back])[0])
    return undo(session, k, error, back)


def undo(session: Session, k: int, error: Diverged, update: int = 0) -> str:
    """Discard what round k did after an update (0: the whole round), in the run folder. Returns why and how, in words."""
    back = f"update {update} of round {k}" if update else f"the end of round {k - 1}" if k > 1 else "the start"
    message = f"{error}, after update {error.update} of round {k}; rolled back to {back}"
    session.run.undo(k, update)
    session.run.log("guard", round=k, update=error.update, guard=error.guard, why=str(error), back=update)
    session.watch.say(message)
    return message


def _resume(session: Session, k: int) -> LearnState:
    """Load the policy: as it was saved within round k, or as the round before left it."""
    at = session.run.state
    if at.get("round") == k and at["update"] > 0 and not session.run.good.are_whole(k, at.get("good", [])):
        session.watch.say(f"a policy in {session.run.folder / 'good'} is missing or damaged: round {k} begins anew")
        session.run.begin_again(k)
    if session.run.state.get("round") == k and session.run.state["update"] > 0:
        session.slots.load("policy", session.run.tensors()["policy"])
        return LearnState(**{f.name: session.run.state[f.name] for f in fields(LearnState)})
    session.slots.load("policy", session.load_snapshot(k - 1))
    return LearnState()


def _learn(session: Session, k: int, state: LearnState, fakes: Fakes | None, paths: FakePaths | None) -> None:
    """Learn from where `state` stands. After each update: journal, progress, and whatever is due to be saved."""
    settings, guarded = session.settings.learn, session.settings.judge.stop
    optimizer = session.device.optimizer(settings.optimizer, session.slots.parameters(), settings.rate)
    average = Average(settings.ema, session.slots.parameters())
    if state.update:
        restore_optimizer(optimizer, session.run.tensors().get("optimizer", {}))
        average.restore(session.run.tensors().get("average", {}))
    draw, seed = session.settings.draw, session.settings.run.seed
    batches = Batches(session.family, session.encoded, session.train, fakes, settings, seed, k, draw, paths)
    batches.known = known_errors(session, k, batches)
    good_every = updates_for(LONG, settings.batch) if guarded else 0
    save_at = time.monotonic() + SAVE_SECONDS
    with session.watch.phase(session.title(k, "learn"), settings.length) as progress:

        def after_update(measured: dict[str, float]) -> None:
            nonlocal save_at
            average.update(state.update)
            session.run.log("update", round=k, **measured)
            asked = _report(progress, state.update, settings.length, measured)
            if state.update < settings.length:
                _keep(session, k, state.update, good_every, optimizer, average)
            began = time.monotonic()
            if asked or began >= save_at:
                tensors: dict[str, Any] = {"policy": session.slots.state("policy"), "optimizer": optimizer_tree(optimizer)}
                session.run.save(tensors | {"average": average.state()}, round=k, stopped=None, **asdict(state))
                now = time.monotonic()
                save_at = now + SAVE_SECONDS * max(1.0, (now - began) / CHEAP_SAVE)
            if asked:
                raise asked

        with training_weights(optimizer):
            learn(
                session.family, session.slots, session.method, batches, optimizer, settings, session.fallback, state,
                after_update, guarded,
            )  # fmt: skip
    average.apply()


def _keep(
    session: Session, k: int, update: int, good_every: int, optimizer: torch.optim.Optimizer, average: Average
) -> None:  # fmt: skip
    """Keep the policy after an update, where it is due: as a snapshot within the round, and for a guard to go back to."""
    every = session.settings.learn.snapshot_every, good_every
    snapshot_due, good_due = (bool(count) and update % count == 0 for count in every)
    if not (snapshot_due or good_due):
        return
    with averaged_weights(optimizer), average.applied():
        if snapshot_due:
            session.save_snapshot(f"{k}-{update}")
        if good_due:
            session.run.good.keep(k, update, session.slots.state("policy"))


def _report(progress: Callable[..., None], update: int, updates: int, measured: dict[str, float]) -> Stopped | None:
    """Tell progress; returns what it raises if someone asked to stop, so that this update can be saved first."""
    try:
        progress(update, updates, **measured)
    except Stopped as stop:
        return stop
    return None


def learn(
    family: Family, slots: Slots, method: Method, batches: Batches, optimizer: torch.optim.Optimizer, settings: Learn,
    fallback: Fallback, state: LearnState, after_update: Callable[[dict[str, float]], None], guarded: bool = True,
) -> None:  # fmt: skip
    """Train from `state.update` to the round's end, and call `after_update` with the figures of each update.

    If `guarded`, the round ends early when all its pairs are won, and a guard that sees it go wrong raises Diverged. A loss or
    gradient that is not a number raises Diverged in any case, before the weights and `state` change.

    Gradients are clipped to 3 x the running mean of their norms. A fixed limit would mean something else for every beta,
    method and model. When memory runs out within an update, its gradients are dropped and the same pictures are tried again
    with cheaper memory settings.
    """
    parameters, played = slots.parameters(), method.fakes == "played"

    def try_update(levers: Levers) -> tuple[Tensor, Errors, dict[str, float]]:
        optimizer.zero_grad(set_to_none=True)
        family.set_checkpointing(levers.checkpointing)
        return _add_gradient(family, slots, method, batches.for_update(state.update), levers, settings, state)

    look_out(state.recent, settings.batch, played, state.update, guarded)  # the run may have ended between a save and a guard
    while state.update < settings.length and not (guarded and won(state.recent, settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, state.update)
        loss, errors, more = fallback.run("learn", settings.batch, try_update)
        limit = 3 * state.norm if state.norm else float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not (torch.isfinite(loss) and norm < float("inf")):
            problem = f"the loss ({loss.item():.3g}) or its gradient ({norm:.3g}) is not a number"
            raise Diverged("numbers", problem, state.update)
        optimizer.step()
        clipped = min(norm, limit)
        state.norm = clipped if state.norm is None else 0.9 * state.norm + 0.1 * clipped
        state.update += 1
        measured = figures(errors) | more
        state.recent = keep_recent([*state.recent, measured], settings.batch)
        after_update({"update": state.update, "loss": loss.item(), "grad_norm": norm, **measured})
        look_out(state.recent, settings.batch, played, state.update, guarded)


def _add_gradient(
    family: Family, slots: Slots, method: Method, batches: Sequence[Batch], levers: Levers, settings: Learn, state: LearnState
) -> tuple[Tensor, Errors, dict[str, float]]:
    """Add the gradient of an update's mean loss, one batch for each shape; returns (loss, errors, further figures).

    An automatic beta changes from update to update. The loss is divided by it, so that gradients keep their size.
    """
    now = state.method(method, settings.aim)
    beta = getattr(now, "beta", 1.0) if settings.aim else 1.0

    def add_own() -> tuple[Tensor, list[Errors], list[Tensor]]:
        losses, of_batches, weights = [torch.zeros((), device=batches[0].t.device)], [], []
        for batch in (batch.share(processes.number(), processes.count()) for batch in batches):
            if len(batch.t):  # each counts by its share of the update's pictures
                share = len(batch.t) / settings.batch
                part, errors = step(family, slots, now, batch, levers.one_graph, levers.micro_batch, share / beta)
                losses.append(part)
                of_batches.append(errors)
                if batch.weight is not None:
                    weights.append(batch.weight)
        return _to_cpu((torch.stack(losses).sum(), of_batches, weights))

    found = processes.gather(add_own)
    processes.sum_gradients(slots.parameters())
    loss = torch.stack([part for part, _, _ in found]).sum()
    of_batches = [errors for _, each, _ in found for errors in each]
    errors = {name: torch.cat([each[name] for each in of_batches]) for name in of_batches[0]}
    weights = [weight for _, _, each in found for weight in each]
    weight = torch.cat(weights) if weights else None
    if settings.aim:
        state.track_margins(errors, weight)
    more = {"beta": beta} if settings.aim else {}
    if "opponent_fake" in errors:
        more["pull"] = pull(now, errors, weight)
    return loss * beta, errors, more


def _to_cpu(tree: T) -> T:
    """A tree of tensors on the CPU, in one transfer: each one makes the host wait for the device."""
    leaves, kind = tree_flatten(tree)
    rows = torch.cat([leaf.flatten() for leaf in leaves]).cpu().split([leaf.numel() for leaf in leaves])
    return tree_unflatten([row.view_as(leaf) for row, leaf in zip(rows, leaves, strict=True)], kind)
