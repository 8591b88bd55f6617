"""The command that compares models on the same prompts. Nothing here imports torch before the command needs it."""

import json as jsons
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from spinlite.errors import SpinliteError


def evaluate(
    what: Annotated[list[Path], typer.Argument(metavar="RUN|LORA…", help="folders of runs, and LoRA files on the same base")],
    prompts: Annotated[
        str | None,
        typer.Option(help="heldout, parti, hps, pickapic-v2-test, …, a text file, a folder; default: heldout, or the demo's"),
    ] = None,
    scorers: Annotated[str, typer.Option(help="with commas: pickscore, hps, imagereward, aesthetic, clip, kid, …")] = "",
    rounds: Annotated[str, typer.Option(metavar="best|last|all|K,…", help="which rounds of a run; the base always")] = "best",
    seeds: Annotated[int, typer.Option(min=1, help="pictures for each prompt")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="so many of the prompts, spread over all")] = None,
    base: Annotated[str, typer.Option(help="the base model, for LoRA files without a run")] = "demo",
    sampler: Annotated[str | None, typer.Option(help="dpm++, ddim, …; default: the fakes' own, then a good one")] = None,
    steps: Annotated[int | None, typer.Option(help="sampling steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="CFG scale; default: the run's")] = None,
    weights: Annotated[list[str], typer.Option(metavar="NAME=FILE", help="a scorer's weights; default: the hub's cache")] = [],  # noqa: B006
    compare: Annotated[bool, typer.Option("--compare", help="also show what papers report, and what differs")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="where all is kept; default: RUN/evaluate/PROMPTS")
    ] = None,
) -> None:
    """Compare models by known scorers. Draws base, rounds and LoRAs with the same noise; says who wins, with intervals."""
    from spinlite.cli import evaluate_screen as screen
    from spinlite.cli.console import Console
    from spinlite.evaluate import evaluate as evaluations
    from spinlite.evaluate.page import write
    from spinlite.evaluate.tables import as_json
    from spinlite.progress import Silent

    console = Console()
    asked = {"sampler": sampler, "steps": steps, "guidance": guidance}
    request = evaluations.Request(
        [path for path in what if not path.is_file()], [path for path in what if path.is_file()], base, prompts,
        [word.strip() for word in scorers.split(",") if word.strip()], rounds, seeds, limit,
        {name: value for name, value in asked.items() if value is not None}, _given(weights),
    )  # fmt: skip
    found = evaluations.evaluate(request, output, Silent() if json else console)
    results, page = write(found, found.folder, compare)
    if json:
        typer.echo(jsons.dumps(as_json(found), indent=2))
        return
    screen.show(console.screen, found, compare)
    console.show_facts({"scores": f"{results}", "page": f"{page}: the prompts that gained and lost most"})


def _given(words: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE … -> the user's own files of weights. Raises SpinliteError for a word that is not of this form."""
    found: dict[str, Path] = {}
    for word in words:
        name, is_there, file = word.partition("=")
        if not (name and is_there and file):
            raise SpinliteError(
                f"--weights {word!r} is not NAME=FILE", fix="type e.g. --weights hps_v2.1=HPS_v2.1_compressed.pt"
            )
        found[name] = Path(file).expanduser()
    return found


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(evaluate)
