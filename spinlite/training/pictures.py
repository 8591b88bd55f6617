"""The pictures and captions of a run: looked at, then encoded, before anything is learned."""

import shutil

from spinlite.data.encoded import Encoded
from spinlite.data.records import Record, Survey, list_names, other_pictures
from spinlite.data.survey import grid_of, survey
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.memory import processes
from spinlite.memory.oom import Fallback
from spinlite.progress import Watch
from spinlite.runs.run import Run


def survey_pictures(run: Run, watch: Watch) -> Survey:
    """Read and check every picture and caption."""
    settings, given = run.settings, run.settings.build_method().fakes == "given"
    with watch.phase("check pictures", 1) as progress:
        return survey(settings.data, given, run.cache, progress, grid_of(settings))


def encode_pictures(
    run: Run, base: Family, pictures: Survey, fallback: Fallback, watch: Watch
) -> tuple[Encoded, list[Record], list[Record]]:
    """(encoded pictures and captions, training records, held-out records). Reads pictures again if they changed meanwhile."""
    encoded = _encode_once(run, base, pictures, fallback, watch)
    if encoded.damaged:
        watch.say(f"damaged files of {run.cache}, encoded again: {', '.join(encoded.damaged)}")
    if encoded.changed:
        names = list_names(encoded.changed)
        watch.say(f"{len(encoded.changed)} pictures changed meanwhile and are read again: {names}")
        shutil.rmtree(run.cache / "looks", ignore_errors=True)  # what it remembers of the files may be wrong
        pictures = processes.from_lead(lambda: survey_pictures(run, watch))
        encoded = _encode_once(run, base, pictures, fallback, watch)
    return encoded, *_usable(pictures, encoded, watch)


def _encode_once(run: Run, base: Family, pictures: Survey, fallback: Fallback, watch: Watch) -> Encoded:
    """Encode the pictures and captions that are not encoded yet; returns all of them."""
    both, settings = pictures.train + pictures.heldout, run.settings.data
    others = list(other_pictures(pictures.train).values()) if run.settings.build_method().fakes == "shuffled" else []
    with watch.phase("encode pictures and captions", 1) as progress:
        return fallback.run("encode", len(both), lambda levers: Encoded(
            base, both, run.cache, levers.play_batch, progress, settings, others
        ))  # fmt: skip


def _usable(pictures: Survey, encoded: Encoded, watch: Watch) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records) that could be encoded. Reports the others."""
    if encoded.changed:
        problem = f"pictures keep changing while they are encoded: {list_names(encoded.changed)}"
        raise SpinliteError(problem, fix="wait until no program writes to them, then type the same command again")
    if encoded.faults:
        faults = list(encoded.faults.values())
        watch.say(f"{len(faults)} pictures can't be encoded and are left out: {list_names(faults)}")
    train, heldout = encoded.usable(pictures.train), encoded.usable(pictures.heldout)
    if not (train and heldout):
        problem = "no picture is left to learn from, or none for validation"
        raise SpinliteError(problem, fix="fix the files named above, or add other pictures")
    return train, heldout
