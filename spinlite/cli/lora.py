"""The commands about LoRA files. Nothing here imports torch before a command needs it."""

import contextlib
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from spinlite.cli.paths import new_file, new_folder
from spinlite.progress import describe_size

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, e.g. runs/demo")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="file to write; default: in RUN/export")]


def export(
    run: RunFolder,
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K", help="which round to export")] = "best",
    layout: Annotated[
        Literal["kohya", "diffusers"] | None,
        typer.Option("--format", help="kohya: every WebUI loads it; diffusers: none does. Default: what most programs load"),
    ] = None,
    dtype: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option(help="precision of the file")] = "fp16",
    strength: Annotated[float, typer.Option(help="LoRA strength to bake in; 1 is as trained")] = 1.0,
    negative_guidance: Annotated[
        float | None, typer.Option(metavar="W", help="EXPERIMENTAL: export with strength -W, to push away from what it learned")
    ] = None,
    sidecars: Annotated[bool, typer.Option("--sidecars", help="also write a .json and a preview .png")] = False,
    output: Output = None,
) -> None:
    """Write a run's LoRA for other programs. Checks that the file does what was trained."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.export import export as exports
    from spinlite.families.load import load_family
    from spinlite.memory import device
    from spinlite.runs.run import Run

    source = Run.open_existing(run)
    k = exports.choose_round(source, round_)
    strength = exports.check_strength(strength if negative_guidance is None else -abs(negative_guidance))
    options = exports.ExportOptions(layout, dtype, strength, sidecars)
    path = new_file(output or source.export_path.with_name(exports.name_of(source, k, options)), (".json", ".png") * sidecars)
    base = load_family(source.settings.model, device.choose_device(source.memory))
    verified = exports.export(source, base, k, path, options)
    written = layout or base.layouts[0]
    console.show_facts({"LoRA": f"{path} (round {k}, {written} layout, {dtype})", "checked": verified})
    if layout == "diffusers" and base.layouts[0] == "kohya":
        console.say(exports.DIFFUSERS)


def sample(
    what: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="the folder of a run, or a LoRA file (then add --base)")],
    prompt: Annotated[list[str], typer.Option(help="what to draw, e.g. 'a cat --n dog --d 7'; @FILE: a prompt a line")],
    negative: Annotated[str, typer.Option(help="negative prompt")] = "",
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K|all", help="all: the base and every round")] = "best",
    seeds: Annotated[int, typer.Option(min=1, help="pictures per prompt")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="the first seed")] = 0,
    strength: Annotated[str, typer.Option(help="LoRA strength, or several with commas: 0.6,0.8,1")] = "1",
    base: Annotated[str, typer.Option(help="the base model, for a LoRA file")] = "demo",
    sampler: Annotated[str | None, typer.Option(help="dpm++, ddim, euler, euler-a, …; default: the run's")] = None,
    steps: Annotated[int | None, typer.Option(help="sampling steps; default: the run's")] = None,
    guidance: Annotated[float | None, typer.Option(help="CFG scale; default: the run's")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="the folder to write to")] = None,
) -> None:
    """Make test pictures. Writes a sheet of rounds, strengths and seeds, and single pictures with their A1111 parameters."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.config.load import validate_settings
    from spinlite.config.prompts import read_prompts
    from spinlite.export import sample as samples

    prompts, strengths = read_prompts(prompt), samples.parse_numbers(strength)
    setup = samples.setup_of_file(what, base, strengths) if what.is_file() else samples.setup_of_run(what, round_)
    if idle := samples.describe_idle(setup):
        console.say(idle)
    chosen = {"sampler": sampler, "steps": steps, "guidance": guidance}
    tree = {"play": setup.play.model_dump() | {key: value for key, value in chosen.items() if value is not None}}
    request = samples.SampleRequest(prompts, negative, seeds, seed, strengths, validate_settings(tree).play)
    if resized := samples.describe_request(setup, request):
        console.say(resized)
    folder = new_folder(output or (what.with_suffix("") if what.is_file() else what) / "tries")
    with console.phase("draw", 1) as progress:
        path = samples.draw_samples(setup, request, folder, progress)
    console.show_facts({"sheet": f"{path}", "pictures": f"{folder}, with parameters that A1111 reads"})


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a LoRA or a checkpoint (.safetensors)")],
    json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Describe a LoRA or checkpoint file. Base model, layout, rank, norms, metadata, and which programs load it."""
    from spinlite.cli.console import Console

    console = Console()
    with contextlib.nullcontext() if json else console.screen.status("reading the file"):
        from spinlite.cli import inspect_screen
        from spinlite.export.inspect import inspect as look

        report = look(file)
    if json:
        typer.echo(inspect_screen.as_json(report))
    else:
        inspect_screen.show(console.screen, report)


def resize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a LoRA file (.safetensors)")],
    rank: Annotated[int, typer.Option(min=1, help="the highest rank that a module keeps")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="default: FILE-rRANK beside it")] = None,
    json: Annotated[bool, typer.Option("--json", help="print the error of every module as JSON")] = False,
) -> None:
    """Lower a LoRA's rank. Uses SVD, keeps the file's layout, and says how much of the change is lost."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.lora.resize import resize as write
    from spinlite.lora.tensors import NOTHING

    path = new_file(output or file.with_name(f"{file.stem}-r{rank}"))
    with contextlib.nullcontext() if json else console.screen.status("lowering the rank"):
        resized = write(file, rank, path)
    if json:
        typer.echo(dumps({"file": str(path), "total": resized.total, "errors": dict(resized.errors)}, indent=2))
        return
    worst = sorted(resized.errors.items(), key=lambda item: -item[1])
    middle = worst[len(worst) // 2][1]
    if resized.nothing:
        console.say(f"{file.stem}: {NOTHING}")
    sizes = f"{describe_size(file.stat().st_size)} to {describe_size(resized.size)}"
    console.show_facts({
        "LoRA": f"{path} (rank {resized.rank} to {rank}, {sizes})",
        "lost": f"{resized.total:.1%} of the LoRA's change; half of the modules at most {middle:.1%}, worst {worst[0][1]:.1%}",
        **{f"worst {i + 1}": f"{error:.1%}  {key}" for i, (key, error) in enumerate(worst[:3])},
    })  # fmt: skip


def merge(
    what: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="the folder of a run, or a LoRA file")],
    into: Annotated[str, typer.Option(metavar="BASE", help="base model: .safetensors file, diffusers folder or hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the model to write")],
    round_: Annotated[str, typer.Option("--round", metavar="best|last|K", help="which round of a run")] = "best",
    strength: Annotated[float, typer.Option(help="LoRA strength; 1 is as trained")] = 1.0,
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"] | None, typer.Option(help="precision; default: as in the base file; fp16 for a folder")
    ] = None,
) -> None:
    """Merge a LoRA into a checkpoint. Writes one file in the original layout, and checks it."""
    from spinlite.cli.console import Console

    console = Console()
    from spinlite.export.export import check_strength
    from spinlite.export.merge import Base, lora_of_file, lora_of_run
    from spinlite.export.merge import merge as write
    from spinlite.memory.device import DTYPES

    path = new_file(output)
    check_strength(strength)
    base = Base(into, DTYPES[dtype or "fp16"])
    lora, metadata = lora_of_file(what, base) if what.is_file() else lora_of_run(what, round_)
    lora = {name: pair.times(strength) for name, pair in lora.items()}
    with console.phase("merge and read back", 1) as progress:
        merged = write(lora, base, path, DTYPES[dtype] if dtype else None, {**metadata, "strength": strength}, progress)
    console.show_facts({
        "model": f"{path} ({describe_size(merged.size)})",
        "checked": f"{merged.modules} modules changed; all {merged.tensors} tensors were read back and are right",
        "rounding": f"the file's precision adds noise of {merged.rounding:.1%} of the LoRA's change"
        + ("; --dtype fp32 avoids that" if merged.rounding > 0.1 and dtype != "fp32" else ""),
    })  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (export, sample, inspect, resize, merge):
        app.command()(command)
