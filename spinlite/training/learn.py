"""The learning of one round, from top to bottom:

learn_round -> _resume (the policy as it stands), probe (the self-check at a round's start), _learn (batches, optimizer, what is
saved on the way) -> learn (the loop over updates) -> update.add_gradient (one update's pictures) -> step.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields

import torch

from spinlite.config.rounds import learning_rate
from spinlite.config.settings import Learn
from spinlite.families.family import Family
from spinlite.lora.adapters import Slots
from spinlite.memory.device import Levers, averaged_weights, training_weights
from spinlite.memory.oom import Fallback
from spinlite.methods.registry import Method
from spinlite.progress import Stopped
from spinlite.runs.snapshots import update_of
from spinlite.runs.store import read_tensors
from spinlite.runs.trees import optimizer_tree, restore_optimizer
from spinlite.training.average import Average
from spinlite.training.batches import Batches, FakePaths, Fakes
from spinlite.training.fakes import compare_with_real, warn_of_few_steps
from spinlite.training.guards import LONG, PAIRS, Diverged, keep_recent, look_out, soonest_won, updates_for, won
from spinlite.training.learn_state import LearnState
from spinlite.training.opponent_errors import known_errors
from spinlite.training.probe import probe
from spinlite.training.session import Session
from spinlite.training.update import Clipping, Made, Unread, add_gradient

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
            f"round {k} ends early, after {state.update} of {updates} updates: the policy has won all its pairs, so "
            "self-play has nothing left to teach in it"
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
    with session.watch.phase(session.title(k, "learn"), settings.length) as progress:
        keeper = Keeper(session, k, state, optimizer, average, progress)
        try:
            with training_weights(optimizer):
                learn(
                    session.family, session.slots, session.method, batches, optimizer, average, settings, session.fallback,
                    state, keeper, guarded,
                )  # fmt: skip
        except Diverged:
            if keeper.asked:  # the run goes on from before the alarm, and comes to it again
                raise keeper.asked from None
            raise
    average.apply()


class Keeper:
    """What is kept of a round while it learns: its journal, policies, and the state to go on from."""

    def __init__(
        self, session: Session, k: int, state: LearnState, optimizer: torch.optim.Optimizer, average: Average,
        progress: Callable[..., None],
    ) -> None:  # fmt: skip
        self._session, self._k, self._state, self._optimizer, self._average = session, k, state, optimizer, average
        self._progress, self._length = progress, session.settings.learn.length
        good_every = updates_for(LONG, session.settings.learn.batch) if session.settings.judge.stop else 0
        self._every = session.settings.learn.snapshot_every, good_every
        self._save_at = time.monotonic() + SAVE_SECONDS
        self.asked: Stopped | None = None  # someone asked the run to stop

    def journal(self, measured: dict[str, float]) -> None:
        """Journal the figures of an update, and tell progress."""
        self._session.run.log("update", round=self._k, **measured)
        try:
            self._progress(measured["update"], self._length, **measured)
        except Stopped as stop:
            self.asked = stop

    def due(self, update: int) -> list[bool]:
        """Whether something has to be kept after an update: a snapshot within the round, a policy for a guard to go back to."""
        return [bool(every) and update % every == 0 and update < self._length for every in self._every]

    def keep(self) -> None:
        """Keep what is due after the last update, which is journalled. Raises Stopped if someone asked for it."""
        session = self._session
        snapshot_due, good_due = self.due(self._state.update)
        if snapshot_due or good_due:
            with averaged_weights(self._optimizer), self._average.applied():
                if snapshot_due:
                    session.save_snapshot(f"{self._k}-{self._state.update}")
                if good_due:
                    session.run.good.keep(self._k, self._state.update, session.slots.state("policy"))
        began = time.monotonic()
        if self.asked or began >= self._save_at:
            self._save()
            now = time.monotonic()
            self._save_at = now + SAVE_SECONDS * max(1.0, (now - began) / CHEAP_SAVE)
        if self.asked:
            raise self.asked

    def _save(self) -> None:
        policy, optimizer, average = self._session.slots.state("policy"), optimizer_tree(self._optimizer), self._average.state()
        tensors = {"policy": policy, "optimizer": optimizer, "average": average}
        self._session.run.save(tensors, round=self._k, stopped=None, **asdict(self._state))


def learn(
    family: Family, slots: Slots, method: Method, batches: Batches, optimizer: torch.optim.Optimizer, average: Average,
    settings: Learn, fallback: Fallback, state: LearnState, keeper: Keeper, guarded: bool = True,
) -> None:  # fmt: skip
    """Train from `state.update` to the round's end. `keeper` is given the figures of every update, some updates at a time.

    If `guarded`, the round ends early when all its pairs are won, and a guard that sees it go wrong raises Diverged. A loss or
    gradient that is not a number raises Diverged in any case. Both come before anything more is kept.

    When memory runs out within an update, its gradients are dropped and the same pictures are tried again with cheaper memory
    settings.
    """
    parameters, played = slots.parameters(), method.fakes == "played"
    clipping, unread = Clipping(state.norm, parameters), Unread(parameters[0].device, settings.aim)

    checkpointing: bool | None = None

    def try_update(levers: Levers) -> Made:
        nonlocal checkpointing
        optimizer.zero_grad(set_to_none=True)
        if levers.checkpointing != checkpointing:  # setting it goes through all modules
            family.set_checkpointing(levers.checkpointing)
            checkpointing = levers.checkpointing
        return add_gradient(family, slots, method, batches.for_update(state.update), levers, settings, state, clipping)

    while state.update < settings.length and not (guarded and won(state.recent, settings.batch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, state.update)
        unread.add(fallback.run("learn", settings.batch, try_update))
        optimizer.step()
        state.update += 1
        average.update(state.update)
        last = state.update == settings.length
        if last or any(keeper.due(state.update)) or unread.due(soonest_won(state.recent, settings.batch)):
            found = unread.read()
            for update, each in enumerate(found, state.update - len(found) + 1):
                keeper.journal(_take_in(state, settings, each, update))
                look_out(state.recent, settings.batch, played, update, guarded)
            state.norm = clipping.mean
            keeper.keep()


def _take_in(state: LearnState, settings: Learn, made: Made, update: int) -> dict[str, float]:
    """Update `state` by what an update found; returns its figures. Raises Diverged if they are not numbers."""
    loss, norm = made.loss.item(), made.norm.item()
    if not (math.isfinite(loss) and norm < math.inf):
        raise Diverged("numbers", f"the loss ({loss:.3g}) or its gradient ({norm:.3g}) is not a number", update - 1)
    if settings.aim:
        state.track_margins(made.errors, made.weight)
    measured = made.figures(settings.aim)
    state.recent = keep_recent([*state.recent, measured], settings.batch)
    return {"update": update, "loss": loss, "grad_norm": norm, **measured}
