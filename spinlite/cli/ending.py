"""How a command ends that could not do its work: one problem, one thing to do, and the trace of what nobody expected."""

import contextlib
import difflib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from spinlite.cli.options import OF_PRESETS
from spinlite.config.presets import USUAL
from spinlite.config.spelling import cut
from spinlite.errors import SpinliteError

AGAIN = "then type the same command again: the run goes on from here"
TRACE = "trace.txt"


@contextlib.contextmanager
def explained(folder: Path | None = None) -> Iterator[None]:
    """Raises SpinliteError in place of any other error within.

    The trace of one that nobody expected is written into the folder if there is one, else into the folder for temporary files.
    """
    try:
        yield
    except (SpinliteError, typer.TyperException, typer.Abort, typer.Exit, BrokenPipeError):
        raise
    except ImportError as error:
        fix = "install spinlite again: pip install -c constraints.txt -e ."
        raise SpinliteError(f"a package is missing or broken: {error}", fix=fix) from error
    except Exception as error:
        raise _explain(error, folder) from error


def _explain(error: Exception, folder: Path | None) -> SpinliteError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpinliteError("the disk is full", fix=f"free some space, {AGAIN}")
    if isinstance(error, OSError) and error.filename:
        problem = ": ".join(str(part) for part in (error.strerror or type(error).__name__, error.filename))
        return SpinliteError(problem, fix="check that the path can be read and written, then type the same command again")
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if _is_ours(frame.filename)), None)
    where = f" in {Path(place.filename).name}, {place.name}" if place else ""
    problem = f"spinlite met something that it does not know{where}: {cut(' '.join(said.split()))}"
    trace = _write_trace(error, folder)
    kept = f"type the same command again; if it ends so again, report it with {trace}, where the full trace is"
    return SpinliteError(problem, fix=kept if trace else "type the same command again; the trace could not be written")


def _is_ours(file: str) -> bool:
    package = Path(__file__).parents[1]
    return package in Path(file).parents and Path(file) != Path(__file__)


def _write_trace(error: Exception, folder: Path | None) -> Path | None:
    """The file with the whole trace; None if it could be written nowhere."""
    text = "".join(traceback.format_exception(error))
    words = f"spinlite {' '.join(sys.argv[1:])}\n\n{text}"
    places = [folder / TRACE] if folder and folder.is_dir() else []
    for path in [*places, Path(tempfile.gettempdir()) / f"spinlite-{os.getpid()}-{TRACE}"]:
        with contextlib.suppress(OSError):
            path.write_text(words, encoding="utf-8", errors="replace")
            return path
    return None


def usage(error: typer.TyperException, words: Sequence[str]) -> SpinliteError:
    """The error for words that make no command. `words` are all that were typed."""
    from spinlite.config.mistakes import outside_sections

    context = getattr(error, "ctx", None)
    command = context.command_path if context else "spinlite"
    takes = {parameter.name for parameter in context.command.params} if context else set()
    option = getattr(error, "option_name", "") if hasattr(error, "possibilities") else ""
    if option and takes.issuperset(OF_PRESETS):
        after = [word.partition("=")[2] if "=" in word else next(iter(words[i + 1 :]), "")
                 for i, word in enumerate(words) if word.partition("=")[0] == option]  # fmt: skip
        if ours := outside_sections(option, (after or [""])[0], typed=True):
            return ours
    known = getattr(context.command, "commands", {}) if context else {}
    typed = next((word for word in words if not word.startswith("-")), "")
    fix = f"type `{command} --help`"
    if known and typed not in known:
        fix = next((f"type `{command} {name}`" for name in difflib.get_close_matches(typed, known, 1)), fix)
    elif getattr(getattr(error, "param", None), "name", "") == "preset":
        fix = f"name a preset: type e.g. {command} {USUAL} (`spinlite presets` lists them)"
    return SpinliteError(error.format_message(), fix=fix)


def quiet_streams() -> None:
    """From now on nothing is written to streams that nobody reads: after `| head`, or where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open until the program ends)
