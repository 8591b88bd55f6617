"""The commands, and how the program ends. Nothing here imports torch before a command needs it."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from spinlite import __version__
from spinlite.cli import data as cli_data
from spinlite.cli import evaluate as cli_evaluate
from spinlite.cli import lora as cli_lora
from spinlite.cli import plan as cli_plan
from spinlite.cli import report as cli_report
from spinlite.cli import runs as cli_runs
from spinlite.cli import settings as cli_settings
from spinlite.cli import ui as cli_ui
from spinlite.cli.ending import explained, quiet_streams, usage
from spinlite.cli.options import OF_PRESETS, DataFolder, Overrides, Preset, Runs, takes
from spinlite.config.presets import USUAL
from spinlite.errors import STOPPED, SpinliteError
from spinlite.runs.names import check_name

# Set before torch is imported: its threads spin while they wait. Endless spinning made a step 20 times slower on a busy
# machine with 2 cores; no spinning made it twice as slow on an idle one.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it warns of 4-bit kernels that are not needed

HELP = f"""Train LoRAs for diffusion models by self-play, from your own captioned pictures.

\b
See it work (3 minutes, no GPU, no download):
  spinlite train demo
Your pictures (name.png + name.txt) and your checkpoint:
  spinlite train {USUAL} --data my-pictures --base model.safetensors \\
    --name mystyle
"""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help=HELP,
)  # fmt: skip


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """The words before any command."""
    if version:
        typer.echo(f"spinlite {__version__}")


@app.command()
@takes(*OF_PRESETS)
def train(
    preset: Preset,
    data: DataFolder = None,
    name: Annotated[str | None, typer.Option(help="name of the run; default: the preset's name")] = None,
    runs: Runs = Path("runs"),
    processes: Annotated[int, typer.Option(min=1, help="how many train together, one for each card (docs/scale.md)")] = 1,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Train a LoRA by self-play. The same command resumes an interrupted run."""
    name = name or Path(preset).stem
    check_name(name)
    if processes > 1:
        from spinlite.cli.launch import launch

        raise typer.Exit(launch(processes, sys.argv[1:]))
    from spinlite.cli.console import Console

    console = Console()
    console.say(f"spinlite {__version__} · {name}")
    from spinlite.config.load import load_settings

    settings = load_settings(preset, set_, data__folder=data)
    from spinlite.cli.at_end import allowed, at_end

    if settings.about:
        console.say(settings.about)
    wish = allowed(settings.report.on_end, set_, console.say) if os.environ.get("RANK", "0") == "0" else ""
    from spinlite.cli import train_screen
    from spinlite.cli.stop import stoppable
    from spinlite.selfplay import train as go

    with at_end(wish, runs / name, console.say) as ended:
        with explained(runs / name), stoppable(console):
            outcome = go(settings, runs / name, console)
        if not outcome.already:
            ended(train_screen.in_brief(outcome))
    train_screen.show(console, outcome)


@app.command()
def doctor(
    runs: Runs = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print facts and findings as JSON")] = False,
) -> None:
    """Check whether this computer can train. Says how to fix what is wrong; exit code 1 if training can't run."""
    from spinlite.cli.console import Console
    from spinlite.doctor import screen
    from spinlite.doctor.diagnosis import diagnose
    from spinlite.doctor.probes import examine

    console = Console()
    if json:
        computer = examine(runs)
        typer.echo(screen.as_json(computer, findings := diagnose(computer)))
    else:
        console.say(f"spinlite {__version__} · doctor: runs a small test of each part, which takes a moment")
        with console.screen.status("looking at the computer") as status:
            computer = examine(runs, lambda name: status.update(f"trying {name}"))
        screen.show(console.screen, computer, findings := diagnose(computer))
    if not screen.ready(findings):
        raise typer.Exit(1)


@app.command()
@takes(*OF_PRESETS)
def bench(
    preset: Preset,
    steps: Annotated[int, typer.Option(min=1, help="how many times each figure is measured")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="on a CPU: time to spend; batch and pictures shrink to fit")] = 100,
    set_: Overrides = [],  # noqa: B006
    promises: Annotated[bool, typer.Option("--promises", help="also say what spinlite promises of the figures")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="also show where the time of an update goes")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Measure time and memory of a preset on this computer. Compares self-play with plain LoRA training; downloads nothing."""
    from spinlite.cli.console import Console

    console = Console()
    if not json:
        console.say(f"spinlite {__version__} · bench {preset}: measures with random weights, downloads nothing")
    from spinlite.config.load import load_settings

    settings = load_settings(preset, set_)
    from spinlite.bench import screen
    from spinlite.bench.run import bench as measure

    if json:
        typer.echo(screen.as_json(preset, measure(settings, steps, seconds, lambda done, of: None, profile)))
        return
    with console.phase("measure", 1) as progress:
        figures = measure(settings, steps, seconds, progress, profile)
    screen.show(console.screen, preset, figures, promises)


cli_data.register(app)
cli_evaluate.register(app)
cli_lora.register(app)
cli_plan.register(app)
cli_report.register(app)
cli_runs.register(app)
cli_settings.register(app)
cli_ui.register(app)


def main() -> None:
    """Run the command that was typed. Every error is shown in two lines, without a traceback: what is wrong, and what to do."""
    if os.environ.get("RANK", "0") != "0":  # one of several processes, but not the one that speaks
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open until the program ends)
    quiet_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    from spinlite.cli.console import Console

    try:
        with explained():
            code = _run(_typed(sys.argv[1:]) or ["--help"])
            sys.stdout.flush()
    except SpinliteError as error:
        Console().error(" ".join(error.problem.split()), " ".join(error.fix.split()))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        Console().say(STOPPED)
        code = 130
    except BrokenPipeError:  # `| head` has read enough
        code = 1
    quiet_streams()
    sys.exit(code)


def _typed(words: list[str]) -> list[str]:
    """The words before a comment: Windows' cmd hands over what follows a #, other shells do not."""
    return words[: words.index("#")] if "#" in words else words


def _run(words: list[str]) -> int:
    """Run the command; returns its exit code. Raises SpinliteError for words that make no command."""
    if undecodable := [word for word in words if word.encode(errors="replace").decode() != word]:
        raise SpinliteError(f"{undecodable[0]!r} is not UTF-8", fix="rename that file or folder")
    try:
        code = app(words, prog_name="spinlite", standalone_mode=False)
    except typer.TyperException as error:
        raise usage(error, words) from None
    if code == 130:  # typer's exit code for Ctrl-C
        raise KeyboardInterrupt
    return code or 0
