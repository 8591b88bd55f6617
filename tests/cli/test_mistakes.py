"""Typical mistakes of people who come from other trainers, through the real command line: each is told what to type."""

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Command
from tests.toy import TOY

KOHYA = '[additional_network_arguments]\nnetwork_module = "networks.lora"\n\n[training_arguments]\nlearning_rate = 1e-4\n'
FILES = {
    "kohya.toml": KOHYA,
    "dims.toml": "[additional_network_arguments]\nnetwork_dim = 32\n",
    "mine.toml": 'extends = "sd15-12gb"\n\n[data]\nfolder = "C:\\Users\\me\\pics"\n',
    "tabs.toml": 'extends = "sd15-12gb"\n\n[data]\nfolder = "D:\\training\\new"\n',
    "onetrainer.json": '{"lora_rank": 16}',
    "illustrious.safetensors": "",
}
MISTAKES = {
    "a word of kohya": (["sd15-12gb", "--data", "pics", "--network_dim=32"], "network_dim is model.rank", "type --rank 32"),
    "with a blank": (["sd15-12gb", "--learning_rate", "1e-4"], "learning_rate is learn.lr here", "type --lr 0.0001"),
    "with dashes": (["sd15-12gb", "--train-batch-size", "4"], "train_batch_size is learn.batch here", "type --batch 4"),
    "behind --set": (["sd15-12gb", "--set", "network_alpha=16"], "is model.alpha here", "type --set model.alpha=16"),
    "epochs": (["sd15-12gb", "--max_train_epochs", "10"], "(counted for each round)", "type --epochs 10"),
    "the model": (["sd15-12gb", "--pretrained_model_name_or_path", "a.safetensors"], "model.base", "type --base a.safetensors"),
    "a flag": (["sd15-12gb", "--xformers"], "xformers is memory.attention", "type --set memory.attention=xformers"),
    "captions": (["sd15-12gb", "--caption_extension=.txt"], ".txt files beside the pictures", "leave caption_extension out"),
    "no such thing": (["sd15-12gb", "--noise_offset", "0.05"], "there is no noise_offset here", "leave noise_offset out"),
    "where to": (["sd15-12gb", "--output_name", "mystyle"], "an option", "type --name my-style"),
    "two sizes": (["sd15-12gb", "--resolution", "1024,1024"], "should be a whole number, 16 to 4096", "type --resolution 1024"),
    "our own word": (["sd15-12gb", "--guidance", "7"], "--guidance is play.guidance", "type --set play.guidance=7"),
    "a comma": (["sd15-12gb", "--lr", "0,0001"], "lr = '0,0001' in [learn] should be a number", "type --lr 0.0001"),
    "a large rank": (["sd15-12gb", "--rank", "2048"], "should be a whole number, 1 to 1024", "type --rank 1024"),
    "pictures for a preset": (["pics"], "pics is a folder, no preset", "spinlite train sdxl-12gb --data pics"),
    "a model for a preset": (["illustrious.safetensors"], "is a model, no preset", "--base"),
    "another trainer's preset": (["onetrainer.json"], "is no preset", "type `spinlite presets show sdxl-12gb > mine.toml`"),
    "a preset of kohya": (["dims.toml"], "network_dim is model.rank here", "write rank = 32 under [model]"),
    "its module": (["kohya.toml"], "there is no network_module here", "leave network_module out"),
    "backslashes": (["mine.toml"], "line 4", "write folder = 'C:\\Users\\me\\pics' in line 4"),
    "backslashes that make tabs": (["tabs.toml"], "should not hold a tab", 'write folder = "D:/training/new" under [data]'),
    "no pictures": ([TOY], "no pictures to train on were given", "--data FOLDER"),
    "no preset": (["--data", "pics"], "Missing argument 'preset'", "type e.g. spinlite train sdxl-12gb"),
}


@pytest.mark.parametrize(("words", "problem", "fix"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_what_to_type(command: Command, words: list[str], problem: str, fix: str):
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    Path("pics").mkdir()
    Image.new("RGB", (64, 64)).save("pics/a.png")
    said = command("train", *words).error()
    assert problem in said[0] and fix in said[1]
    assert not list(Path().rglob("settings.toml"))


@pytest.mark.parametrize("name", ["plan", "bench", "train"])
def test_the_short_options_are_those_of_every_command_with_a_preset(command: Command, name: str):
    problem, fix = command(name, "demo", "--rank", "0").error()
    assert problem == "rank = 0 in [model] should be a whole number, 1 to 1024" and fix == "type --rank 1"
    assert "such option" not in command(name, "demo", "--base", "demo", "--batch", "x").err


@pytest.mark.parametrize("words", [["check", "pics", "--rank", "4"], ["export", "x", "--network_dim=4"], ["--rank", "4"]])
def test_a_command_that_takes_no_settings_does_not_ask_for_them(command: Command, words: list[str]):
    problem, fix = command(*words).error()
    assert "No such option" in problem and "--help`" in fix


def test_check_looks_at_the_shapes_of_a_resolution(command: Command):
    Path("pics").mkdir()
    Image.new("RGB", (800, 800)).save("pics/a.png")
    assert "768 x 768 px, as asked" in command("check", "pics", "--resolution", "768").out


def test_a_short_option_goes_over_set(command: Command):
    assert "rank = 0 in" in command("plan", "demo", "--rank", "0", "--set", "model.rank=4").error()[0]


def test_the_version_is_printed(command: Command):
    from spinlite import __version__

    assert command("--version") == (0, f"spinlite {__version__}\n", "")
