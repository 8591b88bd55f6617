"""One run of self-play, from its settings to the exported LoRA. It reads from top to bottom:

train -> _play_rounds -> _prepare (look at the data, plan, load, encode), then round after round (play, learn, snapshot,
judge) -> _export. What one round does is in `training/`.
"""

import contextlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spinlite.config.prompts import Prompt
from spinlite.config.rounds import with_pictures
from spinlite.config.settings import Settings
from spinlite.data.encoded import Encoded
from spinlite.data.records import Survey, count_pictures
from spinlite.errors import SpinliteError
from spinlite.export.export import ExportOptions, export
from spinlite.families.family import Family
from spinlite.families.load import load_family, require_base
from spinlite.lora.start import describe_start, make_slots
from spinlite.memory import device, processes
from spinlite.memory.device import Device, Levers
from spinlite.memory.oom import Fallback, explain_out_of_memory
from spinlite.memory.spill import watch_spill
from spinlite.plan.make import plan_device
from spinlite.plan.plan import Plan, cache_folder
from spinlite.plan.timing import expected_seconds
from spinlite.progress import Silent, Watch, describe_duration
from spinlite.report.page import write_report
from spinlite.report.trackers import tracked
from spinlite.runs.checksum import checksum
from spinlite.runs.live import LiveWatch
from spinlite.runs.run import Run
from spinlite.runs.votes import read_votes, standing
from spinlite.summary import describe_levers, explain_plan, run_facts, warnings
from spinlite.training.begin import begin
from spinlite.training.guards import Diverged
from spinlite.training.inputs import as_begun
from spinlite.training.judge import judge
from spinlite.training.learn import learn_round, undo
from spinlite.training.own_folder import own_folder
from spinlite.training.pictures import encode_pictures, survey_pictures
from spinlite.training.play import make_scheduler
from spinlite.training.prompt_sheet import draw_prompts
from spinlite.training.prompts import Asked, ask_all, describe_sizes, prompts_of, settle
from spinlite.training.room import require_room_to_learn
from spinlite.training.session import Session
from spinlite.training.step import required_errors

JUDGED = 64  # the most held-out records that a round measures and plays
REPORT_SECONDS = 30.0  # between two pages about a run under way


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    rounds: list[dict[str, Any]]  # the journal's judge events, one per round
    best: int  # the best round; 0 is the start: no round was better
    stopped: str | None  # why a guard ended the run, if one did
    already: bool  # the run was complete before this call


@explain_out_of_memory()
def train(settings: Settings, folder: Path, watch: Watch) -> Outcome:
    """Train the run in `folder` to its end, or resume it where it stopped. Its caches lie in the folder `cache` beside it.

    Raises SpinliteError for everything that the user can fix, also if another command is at work there.
    """
    with own_folder(folder) as own:
        run = Run(own, settings, folder.parent / "cache")
        outcome = _train(run, LiveWatch(watch, own, device.memory_in_use) if processes.leads() else Silent())
        processes.gather(lambda: None)
        return outcome


def _train(run: Run, watch: Watch) -> Outcome:
    for note in run.notes:
        watch.say(note)
    done, rounds = run.state.get("round", 1) - 1, run.settings.run.rounds
    stopped = run.state.get("stopped") if run.settings.judge.stop else None
    complete = bool(stopped) or done >= rounds
    if processes.from_lead(lambda: complete and run.is_exported):
        return _outcome(run, stopped, already=True)
    if run.state:
        watch.say(_where(run))
    if complete and not run.snapshots.fault(0):
        for note in run.open():
            watch.say(note)
    else:
        with tracked(run, watch) if processes.leads() else contextlib.nullcontext():
            stopped = _play_rounds(run, done, stopped, watch)
    outcome = _outcome(run, stopped, already=False)
    processes.from_lead(lambda: _export(outcome, watch))
    return outcome


def _where(run: Run) -> str:
    """From where a run goes on, in words."""
    k, update = run.state["round"], run.state["update"]
    if k > run.settings.run.rounds:
        return "going on after the last round: the LoRA is still to be written"
    return f"going on from round {k}, " + (f"update {update}" if update else "from its beginning")


def _play_rounds(run: Run, done: int, stopped: str | None, watch: Watch) -> str | None:
    """Play the rounds after the `done` ones, then free the networks; returns why a guard stopped the run, if one did."""
    session, k, reported = _prepare(run, run.settings.run.rounds - done, watch), done + 1, -math.inf
    begin(session)
    draw_prompts(session, 0)
    while k <= run.settings.run.rounds and not stopped:
        stopped, following, undone = _round(session, k)
        run.save({}, round=following, update=0, stopped=stopped, undone=undone)
        run.forget_round()
        if processes.leads() and time.monotonic() - reported >= REPORT_SECONDS:
            _report(run, watch)
            reported = time.monotonic()
        for words in standing(read_votes(run.folder)).values():
            watch.say(words)
        if following > k:
            session.forget_fakes(k)
        k = following
    return stopped


def _round(session: Session, k: int) -> tuple[str | None, int, bool]:
    """Play one round; returns (why the run must stop, if it must; the next round; whether a guard undid something)."""
    try:
        fakes, heldout_fakes = session.play(k)
        require_room_to_learn(session, k)
        undone = learn_round(session, k, fakes)
        session.save_snapshot(k)
        stopped = judge(session, k, heldout_fakes)
    except Diverged as error:
        return undo(session, k, error), k, True
    return undone or stopped, k + 1, bool(undone)


def _report(run: Run, watch: Watch) -> None:
    """Write the page about the run. It is for looking at alone: the run does without."""
    try:
        write_report([run.folder], run.folder / "report.html")
    except (OSError, SpinliteError) as error:
        watch.say(f"no page about the run: {error}")


def _export(outcome: Outcome, watch: Watch) -> None:
    """Write the best round, and the last if it is another, as files for other programs. Loads the base model afresh.

    Round 0 is the start, which no round has bettered: it is nothing to hand over, so then there is the last round alone.
    """
    run, last = outcome.run, max((event["round"] for event in outcome.rounds), default=0)
    files = {last: run.last_export_path} | {outcome.best: run.export_path}
    files.pop(0, None)
    for path in {run.export_path, run.last_export_path} - {*files.values()}:
        path.unlink(missing_ok=True)  # from before the run went on
    base = load_family(run.settings.model, device.choose_device(run.memory)) if files else None
    for k, path in files.items():
        assert base
        verified = export(run, base, k, path, ExportOptions())
        run.log("export", round=k, file=path.name, verified=verified)
        watch.say(f"exported round {k} as {path.name}: {verified}")
    run.save({}, **(run.state | {"exported": {path.name: checksum(path) for path in files.values()}}))
    _report(run, watch)


def _outcome(run: Run, stopped: str | None, already: bool) -> Outcome:
    rounds = run.events("judge")
    return Outcome(run, rounds, run.best, stopped, already)


def _prepare(run: Run, left: int, watch: Watch) -> Session:
    """Everything that the remaining `left` rounds need: records, device and plan, the base with its LoRA, encoded pictures."""
    require_base(run.settings.model)  # a base that is not there is said now, not after the pictures are looked at
    prompts = prompts_of(run.settings.judge)
    pictures = processes.from_lead(lambda: survey_pictures(run, watch))
    settings, method = _count_in(run, pictures), run.settings.build_method()
    where, plan = processes.from_lead(lambda: _plan(run, settings, len(pictures.train), len(pictures.heldout), watch))
    where = replace(where, device=device.choose_device().device)
    watch = watch_spill(watch, where.device)
    base = load_family(settings.model, where)
    make_scheduler(base, settings.play, "cpu")  # refuses wrong settings now, not after hours of encoding
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)

    def report_lowered(text: str) -> None:
        watch.say(text)
        run.save_lowered()

    fallback = Fallback(where, "policy_fake" in required_errors(method), run.lowered, report_lowered)
    seconds = left / processes.count() * fallback.run("learn", settings.learn.batch, lambda levers: expected_seconds(
        base, slots, method, settings, levers, len(pictures.train), len(pictures.heldout[:JUDGED])
    ))  # fmt: skip
    watch.show_facts(run_facts(settings, base, pictures, method, str(where)) | {
        "memory": describe_levers(fallback.levers("play"), fallback.levers("learn"), settings.learn.batch),
        **({"peak": explain_plan(plan)} if plan else {}),
        "time": f"about {describe_duration(seconds)} for {left} rounds",
    })  # fmt: skip
    if base.start:
        watch.show_facts({"start": describe_start(base.start, Path(settings.model.init_lora or "").name)})
    for warning in warnings(pictures, settings):
        watch.say(warning)
    encoded, train, heldout = encode_pictures(run, base, pictures, fallback, watch)
    asked = _ask(prompts, settings, base, encoded, watch)
    records = as_begun(run, train, heldout, JUDGED)
    return Session(run, settings, base, slots, method, encoded, *records, where, fallback, watch, asked)


def _ask(prompts: list[Prompt], settings: Settings, base: Family, encoded: Encoded, watch: Watch) -> list[Asked]:
    """The user's own prompts, encoded, in sizes that the base can draw."""
    settled = [settle(prompt, base, settings.drawn) for prompt in prompts]
    if resized := describe_sizes(prompts, settled):
        watch.say(resized)
    return ask_all(base, settled, encoded.captions) if settled else []


def _count_in(run: Run, pictures: Survey) -> Settings:
    """The run's settings, with those that depend on how many pictures there are: as they were when the run began."""
    if not run.state:
        return with_pictures(run.settings, count_pictures(pictures.train), len(pictures.heldout[:JUDGED]))
    began = run.events("begin")[0]["settings"]
    learn = run.settings.learn.model_copy(update={"updates": began["updates"]})
    judge = run.settings.judge.model_copy(update={"draws": began["draws"]})
    return run.settings.model_copy(update={"learn": learn, "judge": judge})


def _plan(run: Run, settings: Settings, train: int, heldout: int, watch: Watch) -> tuple[Device, Plan | None]:
    """The device with the memory settings of its plan, before anything is loaded. Raises SpinliteError if nothing fits.

    Without a card and without memory.vram there is no size to fit into, so there is no plan.
    """
    settings = settings.model_copy(update={"memory": run.memory})
    where = device.choose_device(settings.memory)
    if where.device.type != "cuda" and not settings.memory.vram:
        return where, None
    with watch.phase("plan what fits the card", 1):
        try:
            return plan_device(
                run.name, settings, where, train, heldout, cache_folder(), Levers(**run.levers) if run.levers else None
            )
        except SpinliteError as error:
            if not run.state:
                raise
            fix = "close other programs that use this memory, then type the same command again: it goes on from the last save"
            raise SpinliteError(error.problem, fix=fix) from None
