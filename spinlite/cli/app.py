"""Commands. Nothing here imports torch before a command needs it."""

import errno
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from spinlite import __version__
from spinlite.cli import data as cli_data
from spinlite.cli import lora as cli_lora
from spinlite.cli import plan as cli_plan
from spinlite.errors import SpinliteError

# Before torch is imported: its threads spin while they wait. Without end that made a step 20 times slower on a busy machine;
# not at all, twice as slow on an idle one (2 cores).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it warns of 4-bit kernels that are not needed

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Fine-tune diffusion models by self-play, from your own captioned pictures.",
)  # fmt: skip


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="a shipped preset (see `spinlite presets`) or a TOML file")],
    data: Annotated[str | None, typer.Option(help="folder of pictures with .txt captions")] = None,
    name: Annotated[str | None, typer.Option(help="the run's name; default: the preset's")] = None,
    init_lora: Annotated[str | None, typer.Option(help="a LoRA file to start from")] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds of self-play, those already done included")] = None,
    runs: Annotated[Path, typer.Option(help="where runs are kept")] = Path("runs"),
    set_: Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="any setting; repeatable")] = [],  # noqa: B006
) -> None:
    """Train a LoRA by self-play. A run that was interrupted goes on."""
    name = name or Path(preset).stem
    if name != Path(name).name or name.lower() in ("cache", "..", "."):
        raise SpinliteError(f"{name!r} can't be a run's name", fix="give a plain --name, such as my-style")
    from spinlite.cli.console import Console

    console = Console()
    console.say(f"spinlite {__version__} · {name}")
    from spinlite.config.load import load_settings

    settings = load_settings(preset, set_, data__folder=data, run__rounds=rounds, model__init_lora=init_lora)
    from spinlite.selfplay import train as go

    if settings.about:
        console.say(settings.about)
    _show_outcome(console, go(settings, runs / name, console), preset)


def _show_outcome(console: Any, outcome: Any, preset: str) -> None:
    """How the run ended, and what can be done next."""
    run, last = outcome.run, len(outcome.rounds)
    if outcome.already:
        console.say(f"{run.folder} is complete.")
    if outcome.stopped:
        none = "" if outcome.best else ": no round was better than the start"
        console.say(f"stopped by the guard: {outcome.stopped}. The LoRA is that of round {outcome.best}{none}.")
        if run.state.get("undone"):
            gently = shlex.join(["spinlite", *sys.argv[1:], "--set", f"learn.lr={run.settings.learn.rate / 3:.2g}"])
            console.say(f"to go on from there, more gently: {gently}   (or a larger method.beta)")
    console.show_rounds(outcome.rounds, outcome.best)
    further = {} if outcome.stopped else {"further": f"{_command_without_rounds()} --rounds {last + 2}"}
    console.show_facts({
        "LoRA": f"{run.export_path if run.export_path.exists() else run.snapshot_path(outcome.best)} (round {outcome.best})",
        "samples": f"{run.sheet_path(last) if last else 'none: no round was judged'}",
        "journal": f"{run.folder / 'journal.jsonl'}",
        **further,
        "yours": f"spinlite train {preset} --name mine --data FOLDER   (name.png + name.txt)",
    })  # fmt: skip


def _command_without_rounds() -> str:
    """The command as it was typed, but for --rounds."""
    typed = sys.argv[1:]
    kept = [
        word for i, word in enumerate(typed)
        if not word.startswith("--rounds") and not (i and typed[i - 1] == "--rounds")
    ]  # fmt: skip
    return shlex.join(["spinlite", *kept])


@app.command()
def doctor(
    runs: Annotated[Path, typer.Option(help="where runs are to be kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="facts and findings for programs")] = False,
) -> None:
    """Check whether training can run on this computer. Says what mends what can't; exit code 1 if it can't."""
    from spinlite.cli.console import Console
    from spinlite.doctor import screen
    from spinlite.doctor.diagnosis import diagnose
    from spinlite.doctor.probes import examine

    console = Console()
    if json:
        computer = examine(runs)
        typer.echo(screen.as_json(computer, findings := diagnose(computer)))
    else:
        console.say(f"spinlite {__version__} · doctor: each part is really tried, which takes a moment")
        with console.screen.status("looking") as status:
            computer = examine(runs, lambda name: status.update(f"trying {name}"))
        screen.show(console.screen, computer, findings := diagnose(computer))
    if not screen.ready(findings):
        raise typer.Exit(1)


@app.command()
def bench(
    preset: Annotated[str, typer.Argument(help="a shipped preset (see `spinlite presets`) or a TOML file")],
    steps: Annotated[int, typer.Option(min=1, help="times that each figure is measured")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="on a CPU: how long, by smaller batches and pictures")] = 100,
    set_: Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="any setting; repeatable")] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="the figures for programs")] = False,
) -> None:
    """Measure what a preset costs here. Time and memory of each phase, self-play against plain fine-tuning; no download."""
    from spinlite.cli.console import Console

    console = Console()
    if not json:
        console.say(f"spinlite {__version__} · bench {preset}: the network with random weights, nothing is downloaded")
    from spinlite.config.load import load_settings

    settings = load_settings(preset, set_)
    from spinlite.bench import screen
    from spinlite.bench.run import bench as measure

    if json:
        typer.echo(screen.as_json(preset, measure(settings, steps, seconds, lambda done, of: None)))
        return
    with console.phase("measure", 1) as progress:
        found = measure(settings, steps, seconds, progress)
    screen.show(console.screen, preset, found)


cli_data.register(app)
cli_lora.register(app)
cli_plan.register(app)


def main() -> None:
    """The command line's entry: every error the user can mend is two lines, without a traceback."""
    from spinlite.cli.console import Console

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if strange := [word for word in sys.argv[1:] if word.encode(errors="replace").decode() != word]:
            raise SpinliteError(f"{strange[0]!r} is not UTF-8", fix="rename that file or folder")
        code = app(sys.argv[1:] or ["--help"], prog_name="spinlite", standalone_mode=False)
        if code == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except SpinliteError as error:
        problem, fix = error.problem, error.fix
    except typer.TyperException as error:
        problem, fix = error.format_message(), "see `spinlite --help` and `spinlite train --help`"
    except (KeyboardInterrupt, typer.Abort):
        Console().say("\nstopped. Nothing is lost: the same command goes on from here.")
        sys.exit(130)
    except ImportError as error:
        problem = f"a package is missing or broken: {error}"
        fix = "install spinlite again: pip install -c constraints.txt -e ."
    except OSError as error:
        problem = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        fix = "check that the path can be read and written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem, fix = "the disk is full", "free some space; the same command then goes on from here"
    Console().error(" ".join(problem.split()), fix)
    sys.exit(1)
