"""One run of self-play, from its settings to the exported LoRA. It reads from top to bottom:

train -> _play_rounds -> _prepare (look at the data, plan, load, encode), then round after round (play, learn, snapshot,
judge) -> _export. What one round does is in `training/`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinlite.config.settings import Settings
from spinlite.data.buckets import Grid
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record, Survey, list_names, other_pictures
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.export.export import ExportOptions, export
from spinlite.families.family import Family
from spinlite.families.load import load_family, size_and_step
from spinlite.lora.start import describe_start, make_slots
from spinlite.memory import device
from spinlite.memory.device import Device, Levers
from spinlite.memory.oom import Fallback, explain_out_of_memory
from spinlite.memory.spill import watch_spill
from spinlite.plan.make import plan_device
from spinlite.plan.plan import Plan, cache_folder
from spinlite.plan.timing import expected_seconds
from spinlite.progress import Watch
from spinlite.runs.run import Run
from spinlite.summary import describe_duration, describe_levers, explain_plan, run_facts, warnings
from spinlite.training.guards import Diverged
from spinlite.training.judge import judge
from spinlite.training.learn import learn_round, undo
from spinlite.training.play import make_scheduler
from spinlite.training.session import Session, begin
from spinlite.training.step import required_errors

JUDGED = 64  # held-out records that are measured and played at the most


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    rounds: list[dict[str, Any]]  # the journal's judge events
    best: int
    stopped: str | None
    already: bool  # complete before this call


@explain_out_of_memory()
def train(settings: Settings, folder: Path, watch: Watch) -> Outcome:
    """Bring the run in `folder` to its end, from wherever it stands. Caches lie beside it, in `cache`.

    Raises SpinliteError for what the user can mend.
    """
    run = Run(folder, settings)
    done = run.state.get("round", 1) - 1
    stopped = run.state.get("stopped") if settings.judge.stop else None
    if run.state.get("exported") and (stopped or done >= settings.run.rounds):
        return _outcome(run, stopped, already=True)
    stopped = _play_rounds(run, done, stopped, watch)
    outcome = _outcome(run, stopped, already=False)
    _export(outcome, watch)
    return outcome


def _play_rounds(run: Run, done: int, stopped: str | None, watch: Watch) -> str | None:
    """The rounds after the `done` ones; returns why the run was stopped. Frees the networks at its end."""
    session, k = _prepare(run, run.settings.run.rounds - done, watch), done + 1
    begin(session)
    while k <= run.settings.run.rounds and not stopped:
        stopped, k, undone = _round(session, k)
        run.save({}, round=k, update=0, stopped=stopped, undone=undone)
        run.forget_round()
    return stopped


def _round(session: Session, k: int) -> tuple[str | None, int, bool]:
    """One round; returns (why the run must stop, if it must; the round that comes next; whether a guard undid something)."""
    try:
        fakes, heldout_fakes = session.play(k)
        undone = learn_round(session, k, fakes)
        session.save_snapshot(k)
        stopped = judge(session, k, heldout_fakes)
    except Diverged as error:
        return undo(session, k, error), k, True
    return undone or stopped, k + 1, bool(undone)


def _export(outcome: Outcome, watch: Watch) -> None:
    """The best round and, where it is another, the last, as files for other programs; on a base model loaded afresh."""
    run, last = outcome.run, len(outcome.rounds)
    base = load_family(run.settings.model, device.choose_device(run.memory))
    files = {outcome.best: run.export_path}
    if last == outcome.best:
        run.last_export_path.unlink(missing_ok=True)  # of an earlier end of the run, before it went on
    else:
        files[last] = run.last_export_path
    for k, path in files.items():
        found = export(run, base, k, path, ExportOptions())
        run.log("export", round=k, file=path.name, verified=found)
        watch.say(f"exported round {k}, {path.name}: {found}")
    run.save({}, **{key: value for key, value in run.state.items() if key != "journal"}, exported=True)


def _outcome(run: Run, stopped: str | None, already: bool) -> Outcome:
    rounds = run.events("judge")
    return Outcome(run, rounds, run.best, stopped, already)


def _prepare(run: Run, left: int, watch: Watch) -> Session:
    """Everything that the `left` rounds need: records, the planned device, the loaded base with its LoRA, encoded pictures."""
    settings, method = run.settings, run.settings.build_method()
    found = _survey(run, watch)
    where, plan = _plan(run, len(found.train), len(found.heldout), watch)
    watch = watch_spill(watch, where.device)
    base = load_family(settings.model, where)
    make_scheduler(base, settings.play, "cpu")  # refuses wrong settings now, before hours of encoding
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)

    def tell(text: str) -> None:
        watch.say(text)
        run.save_lowered()

    fallback = Fallback(where, "policy_fake" in required_errors(method), run.lowered, tell)
    seconds = left * fallback.run("learn", settings.learn.batch, lambda levers: expected_seconds(
        base, slots, method, settings, levers, len(found.train), len(found.heldout[:JUDGED])
    ))  # fmt: skip
    watch.show_facts(run_facts(settings, base, found, method, str(where)) | {
        "memory": describe_levers(fallback.levers("play"), fallback.levers("learn"), settings.learn.batch)
        + (f": {explain_plan(plan)}" if plan else ""),
        "time": f"about {describe_duration(seconds)} for {left} rounds",
    })  # fmt: skip
    if base.start:
        watch.show_facts({"start": describe_start(base.start, Path(settings.model.init_lora or "").name)})
    for warning in warnings(found, settings):
        watch.say(warning)
    encoded, train, heldout = _encode(run, base, found, fallback, watch)
    return Session(run, settings, base, slots, method, encoded, train, heldout[:JUDGED], where, fallback, watch)


def _survey(run: Run, watch: Watch) -> Survey:
    """Every picture and caption, read and checked."""
    settings, given = run.settings, run.settings.build_method().fakes == "given"
    grid = Grid(*size_and_step(settings.model), settings.data.upscale, settings.data.buckets)
    with watch.phase("check pictures", 1) as progress:
        return survey(settings.data, given, run.cache, progress, grid)


def _plan(run: Run, train: int, heldout: int, watch: Watch) -> tuple[Device, Plan | None]:
    """The device with the levers of its plan, before anything is loaded. Raises SpinliteError where nothing fits.

    Without a card, and where [memory] names no size either, there is nothing to fit into, and no plan.
    """
    settings = run.settings.model_copy(update={"memory": run.memory})
    where = device.choose_device(settings.memory)
    if where.device.type != "cuda" and not settings.memory.vram:
        return where, None
    with watch.phase("plan, on the network without data", 1):
        try:
            return plan_device(
                run.name, settings, where, train, heldout, cache_folder(), Levers(**run.levers) if run.levers else None
            )
        except SpinliteError as error:
            if not run.state:
                raise
            fix = "close what else uses this memory and run the same command: the run goes on from its last save"
            raise SpinliteError(error.problem, fix=fix) from None


def _encode(
    run: Run, base: Family, found: Survey, fallback: Fallback, watch: Watch
) -> tuple[Encoded, list[Record], list[Record]]:
    """(encoded pictures and captions, train, held-out). Pictures that changed meanwhile are read once more."""
    encoded = _encode_once(run, base, found, fallback, watch)
    if encoded.changed:
        names = list_names(encoded.changed)
        watch.say(f"{len(encoded.changed)} pictures were changed meanwhile and are looked at again: {names}")
        shutil.rmtree(run.cache / "looks", ignore_errors=True)  # what is remembered of files may be what is wrong
        found = _survey(run, watch)
        encoded = _encode_once(run, base, found, fallback, watch)
    return encoded, *_usable(found, encoded, watch)


def _encode_once(run: Run, base: Family, found: Survey, fallback: Fallback, watch: Watch) -> Encoded:
    """Pictures and captions as the network takes them, made where they are missing."""
    both, settings = found.train + found.heldout, run.settings.data
    others = list(other_pictures(found.train).values()) if run.settings.build_method().fakes == "shuffled" else []
    with watch.phase("encode pictures and captions", 1) as progress:
        return fallback.run("encode", len(both), lambda levers: Encoded(
            base, both, run.cache, levers.play_batch, progress, settings, others
        ))  # fmt: skip


def _usable(found: Survey, encoded: Encoded, watch: Watch) -> tuple[list[Record], list[Record]]:
    """(train, held-out) of what is encoded; what is not is said."""
    if encoded.changed:
        problem = f"pictures are changed faster than they are encoded: {list_names(encoded.changed)}"
        raise SpinliteError(problem, fix="run the same command when nothing writes to them any more")
    if encoded.faults:
        faults = list(encoded.faults.values())
        watch.say(f"{len(faults)} pictures can't be encoded and are left out: {list_names(faults)}")
    train, heldout = encoded.usable(found.train), encoded.usable(found.heldout)
    if not (train and heldout):
        problem = "no picture is left to learn from, or none to measure with"
        raise SpinliteError(problem, fix="mend those named above, or add others")
    return train, heldout
