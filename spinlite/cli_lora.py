"""Commands around LoRA files. Nothing here imports torch before a command needs it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as runs/demo")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="where to write; default: in the run")]


def export(
    run: RunFolder,
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K", help="which snapshot")] = "best",
    layout: Annotated[
        Literal["kohya", "diffusers"], typer.Option("--format", help="kohya: every WebUI reads it; diffusers: few do")
    ] = "kohya",
    dtype: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option(help="precision of the file")] = "fp16",
    strength: Annotated[float, typer.Option(help="folded into the weights: 1 is what was trained")] = 1.0,
    sidecars: Annotated[bool, typer.Option("--sidecars", help="a .json and a preview .png beside the file")] = False,
    output: Output = None,
) -> None:
    """Write a run's LoRA as a file for other programs, and check that it does what was trained."""
    from spinlite.console import Console

    console = Console()
    from spinlite import device
    from spinlite.export import Wanted, choose
    from spinlite.export import export as write
    from spinlite.families import family
    from spinlite.run import Run

    found = Run.found(run)
    k = choose(found, round_)
    default = f"{found.name}-{k}" + "-diffusers" * (layout == "diffusers")
    path = output or found.exported.with_stem(default)
    path = path.with_name(path.name if path.suffix == ".safetensors" else path.name + ".safetensors")
    base = family(found.settings.model, device.choose(found.settings.memory))
    said = write(found, base, k, path, Wanted(layout, dtype, strength, sidecars))
    console.facts({"LoRA": f"{path} (round {k}, {layout} layout, {dtype})", "checked": said})


def register(app: typer.Typer) -> None:
    """Put the commands into the program's."""
    app.command()(export)
