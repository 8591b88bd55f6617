"""The rounds: play, learn, snapshot, judge; and the guards around them."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spinlite.config.settings import Settings
from spinlite.data.buckets import Grid
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record, Survey, listing, strangers
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.export.export import Wanted, export
from spinlite.families.family import Family
from spinlite.families.load import family, frame
from spinlite.lora.metadata import tag_counts
from spinlite.lora.start import slots_for, told
from spinlite.memory import device
from spinlite.memory.device import Device, Levers
from spinlite.memory.oom import Fallback, said
from spinlite.memory.spill import wary
from spinlite.plan.make import take
from spinlite.plan.plan import Plan, cache_folder
from spinlite.plan.timing import expected_seconds
from spinlite.progress import Watch
from spinlite.runs.run import Run
from spinlite.runs.store import fingerprint, fingerprint_files
from spinlite.summary import facts, fitted, reason, spoken, warnings
from spinlite.training.guards import Diverged
from spinlite.training.judge import judge
from spinlite.training.learn import lesson, undo
from spinlite.training.play import solver
from spinlite.training.session import Game
from spinlite.training.step import asked

JUDGED = 64  # held-out records that are measured and played at the most


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    rounds: list[dict[str, Any]]  # the journal's judge events
    best: int
    stopped: str | None
    already: bool  # complete before this call


@said()
def train(settings: Settings, folder: Path, watch: Watch) -> Outcome:
    """Bring the run in `folder` to its end, from wherever it stands. Caches lie beside it, in `cache`.

    Raises SpinliteError for what the user can mend.
    """
    run = Run(folder, settings)
    done = run.state.get("round", 1) - 1
    stopped = run.state.get("stopped") if settings.judge.stop else None
    if run.state.get("exported") and (stopped or done >= settings.run.rounds):
        return _outcome(run, stopped, already=True)
    stopped = _rounds(run, done, stopped, watch)
    outcome = _outcome(run, stopped, already=False)
    _export(outcome, watch)
    return outcome


def _rounds(run: Run, done: int, stopped: str | None, watch: Watch) -> str | None:
    """The rounds after those that are done; returns why the run was stopped. All that they needed is then let go."""
    settings, folder = run.settings, run.folder
    method = settings.build_method()
    grid, cache = Grid(*frame(settings.model), settings.data.upscale, settings.data.buckets), folder.parent / "cache"

    def look() -> Survey:
        with watch.phase("check pictures", 1) as progress:
            return survey(settings.data, method.fakes == "given", cache, progress, grid)

    found = look()
    where, plan = _planned(run, len(found.train), len(found.heldout), watch)
    watch = wary(watch, where.device)
    base = family(settings.model, where)
    solver(base, settings.play, "cpu")  # what it refuses is refused before hours of encoding
    slots = slots_for(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)

    def tell(text: str) -> None:
        watch.say(text)
        run.lower()

    fallback = Fallback(where, "policy_fake" in asked(method), run.lowered, tell)
    left = settings.run.rounds - done
    seconds = left * fallback.run("learn", settings.learn.batch, lambda levers: expected_seconds(
        base, slots, method, settings, levers, len(found.train), len(found.heldout[:JUDGED])
    ))  # fmt: skip
    watch.facts(facts(settings, base, found, method, str(where)) | {
        "memory": fitted(fallback.levers("play"), fallback.levers("learn"), settings.learn.batch)
        + (f": {reason(plan)}" if plan else ""),
        "time": f"about {spoken(seconds)} for {left} rounds",
    })  # fmt: skip
    if base.start:
        watch.facts({"start": told(base.start, Path(settings.model.init_lora or "").name)})
    for warning in warnings(found, settings):
        watch.say(warning)
    encoded = _encode(run, base, found, fallback, watch)
    if encoded.changed:
        watch.say(f"{len(encoded.changed)} pictures were changed meanwhile and are looked at again: {listing(encoded.changed)}")
        shutil.rmtree(cache / "looks", ignore_errors=True)  # what is remembered of files may be what is wrong
        found = look()
        encoded = _encode(run, base, found, fallback, watch)
    train, heldout = _usable(found, encoded, watch)
    game = Game(run, settings, base, slots, method, encoded, train, heldout[:JUDGED], where, fallback, watch)
    return _go(game, done + 1, stopped)


def _planned(run: Run, train: int, heldout: int, watch: Watch) -> tuple[Device, Plan | None]:
    """The device with the levers of its plan, before anything is loaded. Raises SpinliteError where nothing fits.

    Without a card, and where [memory] names no size either, there is nothing to fit into, and no plan.
    """
    settings = run.settings.model_copy(update={"memory": run.memory})
    where = device.choose(settings.memory)
    if where.device.type != "cuda" and not settings.memory.vram:
        return where, None
    with watch.phase("plan, on the network without data", 1):
        try:
            return take(run.name, settings, where, train, heldout, cache_folder(), Levers(**run.levers) if run.levers else None)
        except SpinliteError as error:
            if not run.state:
                raise
            fix = "close what else uses this memory and run the same command: the run goes on from its last save"
            raise SpinliteError(error.problem, fix=fix) from None


def _encode(run: Run, base: Family, found: Survey, fallback: Fallback, watch: Watch) -> Encoded:
    """Pictures and captions as the network takes them, made where they are missing."""
    both, settings = found.train + found.heldout, run.settings.data
    others = list(strangers(found.train).values()) if run.settings.build_method().fakes == "shuffled" else []
    with watch.phase("encode pictures and captions", 1) as progress:
        return fallback.run("encode", len(both), lambda levers: Encoded(
            base, both, run.folder.parent / "cache", levers.play_batch, progress, settings, others
        ))  # fmt: skip


def _usable(found: Survey, encoded: Encoded, watch: Watch) -> tuple[list[Record], list[Record]]:
    """(train, held-out) of what is encoded; what is not is said."""
    if encoded.changed:
        problem = f"pictures are changed faster than they are encoded: {listing(encoded.changed)}"
        raise SpinliteError(problem, fix="run the same command when nothing writes to them any more")
    if encoded.faults:
        faults = list(encoded.faults.values())
        watch.say(f"{len(faults)} pictures can't be encoded and are left out: {listing(faults)}")
    train, heldout = encoded.usable(found.train), encoded.usable(found.heldout)
    if not (train and heldout):
        problem = "no picture is left to learn from, or none to measure with"
        raise SpinliteError(problem, fix="mend those named above, or add others")
    return train, heldout


def _go(game: Game, k: int, stopped: str | None) -> str | None:
    """The rounds from k on, unless the run was stopped; returns why it was."""
    _begin(game)
    while k <= game.settings.run.rounds and not stopped:
        stopped, k, undone = _round(game, k)
        game.run.save({}, round=k, update=0, stopped=stopped, undone=undone)
        game.run.forget_round()
    return stopped


def _begin(game: Game) -> None:
    """The folder, the first event and snapshot 0; on a resume, that data and base are what they were."""
    game.run.open()
    levers = asdict(game.device.levers)
    file = game.settings.model.init_lora
    made_of = {
        "base": game.family.base_hash,
        "start": fingerprint_files([Path(file)]) if file else None,
        "data": fingerprint([[r.key, r.lose_key, r.caption] for r in game.train + game.heldout]),
    }
    if not game.run.state:
        about = {**game.settings.model_dump(), "train": len(game.train), "heldout": len(game.heldout)}
        tags = tag_counts(r.caption for r in game.train)
        game.run.log("begin", **made_of, device=str(game.device), levers=levers, settings=about, tags=tags)
        game.keep(0)
        game.run.save({}, round=1, update=0, stopped=None)
        return
    began = game.run.events("begin")[0]
    watched = {"base": "the base model's files", "start": "the LoRA to start from", "data": "the pictures or captions"}
    for what, named in watched.items():
        if began.get(what) != made_of[what]:
            raise SpinliteError(
                f"{named} have changed since {game.run.folder} began",
                fix="put them back, or start a new run with another --name",
            )
    if game.run.levers != levers:
        game.run.log("levers", levers=levers)


def _round(game: Game, k: int) -> tuple[str | None, int, bool]:
    """One round; returns (why the run must stop, if it must; the round that comes next; whether a guard undid something)."""
    try:
        fakes, heldout_fakes = game.play(k)
        undone = lesson(game, k, fakes)
        game.keep(k)
        stopped = judge(game, k, heldout_fakes)
    except Diverged as error:
        return undo(game, k, error), k, True
    return undone or stopped, k + 1, bool(undone)


def _export(outcome: Outcome, watch: Watch) -> None:
    """The best round and, where it is another, the last, as files for other programs; on a base model loaded afresh."""
    run, last = outcome.run, len(outcome.rounds)
    base = family(run.settings.model, device.choose(run.memory))
    files = {outcome.best: run.exported}
    if last == outcome.best:
        run.exported_last.unlink(missing_ok=True)  # of an earlier end of the run, before it went on
    else:
        files[last] = run.exported_last
    for k, path in files.items():
        found = export(run, base, k, path, Wanted())
        run.log("export", round=k, file=path.name, verified=found)
        watch.say(f"exported round {k}, {path.name}: {found}")
    run.save({}, **{key: value for key, value in run.state.items() if key != "journal"}, exported=True)


def _outcome(run: Run, stopped: str | None, already: bool) -> Outcome:
    rounds = run.events("judge")
    return Outcome(run, rounds, run.best, stopped, already)
