"""How a run begins, or is taken up again: its first event and snapshot, or the check that its input is what it was."""

from dataclasses import asdict
from pathlib import Path

from spinlite.lora.metadata import tag_counts
from spinlite.runs.files import fingerprint_files
from spinlite.training.inputs import fingerprint_records, keep_records, refuse_other_input
from spinlite.training.session import Session


def begin(session: Session) -> None:
    """Make the run folder, its first event and snapshot 0. A run that is continued is checked instead: has its input changed?

    Raises SpinliteError if the base model's files, the LoRA to start from, the pictures or the captions have changed.
    """
    run = session.run
    for note in run.open():
        session.watch.say(note)
    levers = asdict(session.device.levers)
    file = session.settings.model.init_lora
    records = session.train + session.heldout
    made_of = {
        "base": session.family.base_hash,
        "start": fingerprint_files([Path(file)]) if file else None,
        "data": fingerprint_records(records),
    }
    if not run.state:
        keep_records(run, records)
        counted = {"updates": session.settings.learn.length, "draws": session.settings.judge.draws}
        settings = run.settings.model_dump() | {"train": len(session.train), "heldout": len(session.heldout), **counted}
        tags = tag_counts(r.caption for r in session.train)
        run.log("begin", **made_of, device=str(session.device), levers=levers, settings=settings, tags=tags)
        session.save_snapshot(0)
        run.save({}, round=1, update=0, stopped=None)
    else:
        refuse_other_input(run, made_of, records)
        if fault := run.snapshots.fault(0):
            session.watch.say(f"{fault}: made again")
            session.save_snapshot(0)
        session.forget_fakes(run.state["round"] - 1)
        if run.levers != levers:
            run.log("levers", levers=levers)
    for folder in session.encoded.folders:
        run.remember_cache(folder)
