"""The commands around LoRA files, as a user gives them, on a run of a small Stable Diffusion."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spinlite.config.load import load_settings
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from tests.conftest import Command
from tests.toy import TOY, Quiet


@pytest.fixture(scope="module")
def run(tiny_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds on the small SD 1.x, on half a dozen pictures."""
    folder = tmp_path_factory.mktemp("run")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(8):
        Image.new("RGB", (64, 64), (30 * i, 0, round(127 + 100 * math.sin(i)))).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("red, a fox" if i % 2 else "blue", encoding="utf-8")
    words = [
        "model.family=auto", f"model.base={tiny_bases / 'sd15'}", "model.targets=all", "play.sampler=dpm++", "play.steps=2",
        "learn.updates=2", "learn.batch=2", "judge.stop=false", "judge.draws=1",
    ]  # fmt: skip
    return train(load_settings(TOY, words, data__folder=str(pictures)), folder / "runs" / "fox", Quiet()).run


def test_export_writes_the_round_and_form_that_is_asked_for(command: Command, run: Run):
    ended = command("export", run.folder, "--round", "1", "--dtype", "fp32", "--strength", "0.5", "--sidecars", "-o", "mine")
    assert ended.code == 0 and not ended.err
    assert "mine.safetensors (round 1, kohya layout, fp32)" in ended.out and "of 277 modules, largest" in ended.out
    tensors, said = read_tensors(Path("mine.safetensors"))
    assert said["spinlite.strength"] == "0.5" and said["ss_output_name"] == "mine" and Path("mine.png").exists()
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert json.loads(Path("mine.json").read_text(encoding="utf-8"))["sd version"] == "SD1"
    ended = command("export", run.folder, "--round", "last", "--format", "diffusers", "--negative-guidance", "0.3")
    assert ended.code == 0 and "fox-2-negative0.3-diffusers.safetensors" in ended.out
    assert "Only diffusers loads this layout" in ended.out and "64 of 192" in ended.out
    made = run.folder / "export" / "fox-2-negative0.3-diffusers.safetensors"
    assert json.loads(read_tensors(made)[1]["spinlite.strength"]) == -0.3


NAMES = {  # options -> the name of the file that is written, twice
    (): ("fox-2.safetensors", "fox-2-2.safetensors"),
    ("--dtype", "bf16", "--strength", "0.5"): ("fox-2-strength0.5-bf16.safetensors", "fox-2-strength0.5-bf16-2.safetensors"),
    ("-o", "mine"): ("mine.safetensors", "mine-2.safetensors"),
    ("-o", "more/mine.v1.safetensors"): ("mine.v1.safetensors", "mine.v1-2.safetensors"),
}


@pytest.mark.parametrize(("options", "names"), NAMES.items(), ids=lambda part: " ".join(part) or "default")
def test_nothing_is_ever_replaced(command: Command, run: Run, options: tuple[str, ...], names: tuple[str, str]):
    for name in names:
        ended = command("export", run.folder, "--round", "2", *options)
        assert ended.code == 0 and f"{name} (round 2" in ended.out, ended


def test_a_preview_of_ones_own_is_not_replaced(command: Command, run: Run):
    Path("mine.png").write_bytes(b"my own picture")
    ended = command("export", run.folder, "--round", "2", "--sidecars", "-o", "mine")
    assert "mine-2.safetensors" in ended.out and Path("mine.png").read_bytes() == b"my own picture"
    assert {p.name for p in Path.cwd().iterdir()} == {"mine.png", "mine-2.safetensors", "mine-2.json", "mine-2.png"}


def test_sample_draws_a_run_and_a_file(command: Command, run: Run, tiny_bases: Path):
    words = ("--prompt", "a fox", "--steps", "2", "--seeds", "1")
    ended = command("sample", run.folder, *words, "--round", "all", "--strength", "0.5,1", "-o", "tries", "--sampler", "lcm")
    assert ended.code == 0 and not ended.err and "draw" in ended.out
    names = {p.name for p in Path("tries").iterdir()}
    assert names == {"sheet.png", "base-1-prompt1-seed0.png"} | {
        f"fox-{k}-{s}-prompt1-seed0.png" for k in (1, 2) for s in ("0.5", "1")
    }
    with Image.open("tries/fox-2-0.5-prompt1-seed0.png") as picture:
        assert "<lora:fox-2:0.5>" in picture.info["parameters"] and "Sampler: LCM" in picture.info["parameters"]
    with Image.open("tries/sheet.png") as sheet:
        assert sheet.height > sheet.width > 256
    again = command("sample", run.folder, *words, "--round", "2", "-o", "tries").out
    assert str(Path("tries-2") / "sheet.png") in again and len(list(Path("tries-2").iterdir())) == 2
    Path("prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
    ended = command("sample", run.export_path, "--base", tiny_bases / "sd15", *words[2:], "--prompt", "@prompts.txt")
    assert ended.code == 0 and len(list((run.export_path.with_suffix("") / "tries").glob("fox-1-*.png"))) == 2


def test_inspect_shows_a_screen_or_json(command: Command, run: Run, configs: Path):
    ended = command("inspect", run.export_path)
    assert ended.code == 0 and not ended.err and len(ended.out.splitlines()) < 50
    for words in ("LoRA for SD 1.x, with other sizes than the published one", "a fox (", "A1111", "up 3", "predicts"):
        assert words in ended.out
    tree = json.loads(command("inspect", run.export_path, "--json").out)
    assert tree["rank"] == "4" and tree["modules"] == {"UNet": 277} and tree["metadata"]["ss_output_name"] == "fox"
    assert tree["metadata"]["modelspec.thumbnail"].endswith("characters")
    assert "SD 1.x checkpoint" in command("inspect", configs / "sd15.safetensors").out


def test_resize_lowers_the_rank_and_says_what_that_loses(command: Command, run: Run):
    small = run.export_path.with_name("fox-r1.safetensors")
    ended = command("resize", run.export_path, "--rank", "1")
    assert ended.code == 0 and not ended.err and f"{small} (rank 4 to 1" in ended.out and "worst 1" in ended.out
    assert {t.shape[0] for key, t in load_file(small).items() if "lora_down" in key} == {1}
    assert "fox-r1-2.safetensors" in command("resize", run.export_path, "--rank", "1").out
    tree = json.loads(command("resize", run.export_path, "--rank", "2", "-o", "two", "--json").out)
    assert tree["file"] == "two.safetensors" and len(tree["errors"]) == 277 and 0 < tree["total"] < 1


def test_merge_writes_a_model_that_draws_as_the_run_does(command: Command, run: Run, configs: Path):
    base = configs / "sd15.safetensors"
    ended = command("merge", run.folder, "--into", base, "-o", "whole", "--round", "2", "--strength", "30")
    assert ended.code == 0 and not ended.err and "277 modules changed" in ended.out
    assert load_file("whole.safetensors").keys() == load_file(base).keys()
    assert json.loads(read_tensors(Path("whole.safetensors"))[1]["spinlite.merged"])["round"] == 2
    words = ("--prompt", "a fox", "--steps", "4", "--seeds", "1")
    command("sample", run.folder, *words, "--round", "all", "--strength", "30", "-o", "live")
    command("export", run.folder, "--round", "2", "--strength", "1e-9", "-o", "nothing")
    command("sample", "nothing.safetensors", "--base", "whole.safetensors", *words, "-o", "merged")
    pixels = {}
    for name in ("live/base-1", "live/fox-2-30", "merged/nothing-1"):
        with Image.open(f"{name}-prompt1-seed0.png") as picture:
            pixels[name] = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.float32)
    apart = {name: (x - pixels["live/fox-2-30"]).abs().mean().item() for name, x in pixels.items()}
    assert apart["merged/nothing-1"] < 0.05 * apart["live/base-1"]
    ended = command("merge", "nothing.safetensors", "--into", configs / "sd15", "-o", "again", "--dtype", "bf16")
    assert ended.code == 0 and {t.dtype for t in load_file("again.safetensors").values()} == {torch.bfloat16}


WRONG = {
    "export-no-run": (["export", "nowhere"], "is not a run", "such as runs/demo"),
    "export-round": (["export", "RUN", "--round", "7"], "has no round 7", "0 to 2"),
    "sample-prompt": (["sample", "RUN", "--prompt", " "], "there is no prompt", '"a cat"'),
    "sample-sampler": (["sample", "RUN", "--prompt", "x", "--sampler", "eular"], "is no sampler", "did you mean 'euler'"),
    "sample-strength": (["sample", "RUN", "--prompt", "x", "--strength", "much"], "not a list of numbers", "0.6,0.8,1"),
    "sample-base": (["sample", "FILE", "--prompt", "x", "--base", "nowhere.safetensors"], "there is no file", "model.base"),
    "inspect-none": (["inspect", "none.safetensors"], "there is no file none.safetensors", ".safetensors"),
    "inspect-folder": (["inspect", "RUN"], "there is no file", ".safetensors"),
    "resize-rank": (["resize", "FILE", "--rank", "4"], "has rank 4 already", "below 4"),
    "resize-none": (["resize", "none.safetensors", "--rank", "4"], "there is no such file", "check the path"),
    "merge-other": (["merge", "RUN", "--into", "BASES/sdxl.safetensors", "-o", "x"], "unet.", "the kind of model"),
    "merge-small": (["merge", "RUN", "--into", "demo", "-o", "x"], "of the published size", "spinlite export"),
    "merge-folder": (["merge", "RUN", "--into", "BASES/sd15.safetensors", "-o", "."], "is a folder", "-o my-style"),
    "export-round-word": (["export", "RUN", "--round", "²"], "'²' is not a round", "best, last, or a number"),
    "export-round-long": (["export", "RUN", "--round", "9" * 5000], "is not a round", "best, last, or a number"),
    "export-nan": (["export", "RUN", "--strength", "nan"], "strength of nan makes no sense", "--strength 0.8"),
    "export-inf": (["export", "RUN", "--negative-guidance", "inf"], "strength of -inf makes no sense", "--strength 0.8"),
    "merge-nan": (["merge", "RUN", "--into", "demo", "-o", "x", "--strength", "nan"], "strength of nan", "--strength 0.8"),
    "sample-nan": (["sample", "RUN", "--prompt", "x", "--strength", "1,nan"], "strength of nan", "--strength 0.8"),
    "sample-file": (["sample", "RUN", "--prompt", "@none.txt"], "can't read the prompts of none.txt", "after @"),
    "merge-lora": (["merge", "RUN", "--into", "FILE", "-o", "x"], "is a LoRA, not a base model", "use one of these models"),
    "merge-pickle": (["merge", "RUN", "--into", "x.ckpt", "-o", "x"], "is a pickle", ".safetensors"),
}


@pytest.mark.parametrize(("words", "problem", "fix"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_answered_in_two_lines(
    command: Command, words: list[str], problem: str, fix: str, run: Run, configs: Path
):
    given = [
        w.replace("RUN", str(run.folder)).replace("FILE", str(run.export_path)).replace("BASES", str(configs)) for w in words
    ]
    said = command(*given).error()
    assert problem in said[0] and fix in said[1]
    assert not [p for p in Path.cwd().iterdir() if p.name != "tries"]


def test_a_lora_of_zeros_is_said_to_change_nothing(command: Command, run: Run, configs: Path):
    ended = command("export", run.folder, "--round", "0", "-o", "zero")
    assert ended.code == 0 and "this LoRA changes nothing" in ended.out
    words = ("--prompt", "a fox", "--steps", "2", "--seeds", "1", "-o", "tries")
    ended = command("sample", "zero.safetensors", "--base", configs / "sd15", *words)
    assert ended.code == 0 and ended.out.startswith("zero: this LoRA changes nothing")
    assert "base: this LoRA changes nothing" in command("sample", run.folder, "--round", "0", *words).out
    assert "changes nothing" not in command("sample", run.folder, "--round", "all", *words).out
    for what in ("zero.safetensors", run.folder):
        said = command("merge", what, "--round", "0", "--into", configs / "sd15.safetensors", "-o", "whole").error()
        assert "this LoRA changes nothing" in said[0] and "--round" in said[1]
    assert not Path("whole.safetensors").exists()
    assert "changes nothing" in command("resize", "zero.safetensors", "--rank", "1").out
    assert "changes nothing" not in command("resize", run.export_path, "--rank", "1").out
