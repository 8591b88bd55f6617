"""Commands around LoRA files. Nothing here imports torch before a command needs it."""

import contextlib
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from spinlite.errors import SpinliteError

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
    negative_guidance: Annotated[
        float | None, typer.Option(metavar="W", help="EXPERIMENTAL: strength -W, away from what was learned")
    ] = None,
    sidecars: Annotated[bool, typer.Option("--sidecars", help="a .json and a preview .png beside the file")] = False,
    output: Output = None,
) -> None:
    """Write a run's LoRA for other programs. The file is checked: it does what was trained."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.export.export import ExportOptions, choose_round
    from spinlite.export.export import export as write
    from spinlite.families.load import load_family
    from spinlite.memory import device
    from spinlite.runs.run import Run

    found = Run.open_existing(run)
    k = choose_round(found, round_)
    default = f"{found.name}-{k}" + "-diffusers" * (layout == "diffusers") + "-negative" * (negative_guidance is not None)
    path = _named(output or found.export_path.with_stem(default))
    base = load_family(found.settings.model, device.choose_device(found.memory))
    if negative_guidance is not None:
        strength = -abs(negative_guidance)
    said = write(found, base, k, path, ExportOptions(layout, dtype, strength, sidecars))
    console.show_facts({"LoRA": f"{path} (round {k}, {layout} layout, {dtype})", "checked": said})


def sample(
    what: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="a run's folder, or a LoRA file (with --base)")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; repeatable; @FILE is a file with a prompt a line")],
    negative: Annotated[str, typer.Option(help="what to keep away from")] = "",
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K|all", help="all: the base and every round")] = "best",
    seeds: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="the first seed")] = 0,
    strength: Annotated[str, typer.Option(help="one, or several with commas: 0.6,0.8,1")] = "1",
    base: Annotated[str, typer.Option(help="of a LoRA file: the base model")] = "demo",
    sampler: Annotated[str | None, typer.Option(help="dpm++, ddim, euler, euler-a, …; default: the run's")] = None,
    steps: Annotated[int | None, typer.Option(help="solver steps; default: the run's")] = None,
    guidance: Annotated[float | None, typer.Option(help="CFG scale; default: the run's")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="where to write")] = None,
) -> None:
    """Draw with a LoRA. A sheet of rounds, strengths and seeds, and single pictures that a WebUI can repeat."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.config.load import validate_settings
    from spinlite.export.sample import SampleRequest, draw_samples, parse_numbers, read_prompts, setup_of_file, setup_of_run

    texts, strengths = read_prompts(prompt), parse_numbers(strength)
    drawn = setup_of_file(what, base, strengths) if what.is_file() else setup_of_run(what, round_)
    chosen = {"sampler": sampler, "steps": steps, "guidance": guidance}
    tree = {"play": drawn.play.model_dump() | {key: value for key, value in chosen.items() if value is not None}}
    asked = SampleRequest(texts, negative, seeds, seed, strengths, validate_settings(tree).play)
    folder = output or (what.with_suffix("") if what.is_file() else what) / "tries"
    with console.phase("draw", 1) as progress:
        path = draw_samples(drawn, asked, folder, progress)
    console.show_facts({"sheet": f"{path}", "pictures": f"{folder}, with the words that A1111 reads"})


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a LoRA or a checkpoint, .safetensors")],
    json: Annotated[bool, typer.Option("--json", help="everything for programs")] = False,
) -> None:
    """Say what a LoRA or checkpoint file is. Base, layout, rank, norms, header, and which programs load it."""
    from spinlite.cli.console import Console

    console = Console()
    with contextlib.nullcontext() if json else console.screen.status("reading"):
        from spinlite.cli import inspect_screen
        from spinlite.export.inspect import inspect as look

        report = look(file)
    if json:
        typer.echo(inspect_screen.as_json(report))
    else:
        inspect_screen.show(console.screen, report)


def resize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a LoRA file, .safetensors")],
    rank: Annotated[int, typer.Option(min=1, help="no module is left above it")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="default: FILE-rRANK beside it")] = None,
    json: Annotated[bool, typer.Option("--json", help="the error of every module, for programs")] = False,
) -> None:
    """Lower a LoRA's rank. By singular value decomposition, in the layout that it has; says what that loses."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.lora.resize import resize as write

    path = _named(output) if output else file.with_name(f"{file.stem}-r{rank}.safetensors")
    with contextlib.nullcontext() if json else console.screen.status("decomposing"):
        found = write(file, rank, path)
    if json:
        typer.echo(dumps({"file": str(path), "total": found.total, "errors": dict(found.errors)}, indent=2))
        return
    worst = sorted(found.errors.items(), key=lambda item: -item[1])
    middle = worst[len(worst) // 2][1]
    console.show_facts({
        "LoRA": f"{path} (rank {found.rank} to {rank}, {found.size / 1e6:.1f} MB, before {file.stat().st_size / 1e6:.1f} MB)",
        "lost": f"{found.total:.1%} of the whole change; by module: half below {middle:.1%}, the worst {worst[0][1]:.1%}",
        **{f"worst {i + 1}": f"{error:.1%}  {key}" for i, (key, error) in enumerate(worst[:3])},
    })  # fmt: skip


def merge(
    what: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="a run's folder, or a LoRA file")],
    into: Annotated[str, typer.Option(metavar="BASE", help="a .safetensors model, a diffusers folder or a hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the model to write")],
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K", help="which snapshot of a run")] = "best",
    strength: Annotated[float, typer.Option(help="1 is what was trained")] = 1.0,
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"] | None, typer.Option(help="default: each tensor's own; fp16 for a folder")
    ] = None,
) -> None:
    """Write a whole model with a LoRA in it. One file in the original layout, checked."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.export.merge import Base, lora_of_file, lora_of_run
    from spinlite.export.merge import merge as write
    from spinlite.memory.device import DTYPES

    path = _named(output)
    if path.resolve() == Path(into).expanduser().resolve():
        raise SpinliteError(f"{path} is the base model itself", fix="give another -o FILE")
    base = Base(into, DTYPES[dtype or "fp16"])
    lora, said = lora_of_file(what, base) if what.is_file() else lora_of_run(what, round_)
    lora = {name: pair.times(strength) for name, pair in lora.items()}
    with console.phase("merge and read back", 1) as progress:
        found = write(lora, base, path, DTYPES[dtype] if dtype else None, {**said, "strength": strength}, progress)
    console.show_facts({
        "model": f"{path} ({found.size / 1e9:.2f} GB)",
        "checked": f"{found.modules} modules changed, all {found.tensors} tensors read back as they should be",
        "rounding": f"the file's precision adds {found.rounding:.1%} of the LoRA's change, at random"
        + ("; --dtype fp32 keeps it all" if found.rounding > 0.1 and dtype != "fp32" else ""),
    })  # fmt: skip


def _named(path: Path) -> Path:
    """With its ending, where it was left out."""
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def register(app: typer.Typer) -> None:
    """Put the commands into the program's."""
    for command in (export, sample, inspect, resize, merge):
        app.command()(command)
