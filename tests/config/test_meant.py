"""Values as people type them, paths as they spell them, words of other trainers, and presets that are meant to harm."""

import time
from pathlib import Path
from typing import Any

import pytest

from spinlite.config import peers
from spinlite.config.fields import SECTIONS, every_setting, field_of, fields_of
from spinlite.config.kinds import Kind
from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.config.spelling import LONGEST, SHORT
from spinlite.errors import SpinliteError


def refused(preset: Path | str, *overrides: str) -> SpinliteError:
    with pytest.raises(SpinliteError) as caught:
        load_settings(str(preset), overrides)
    assert "\n" not in caught.value.problem + caught.value.fix and len(caught.value.problem + caught.value.fix) < 700
    return caught.value


# fmt: off
MEANT = [
    ("data.trigger=2024", "2024"), ("data.trigger=true", "true"), ("data.trigger='a, b'", "a, b"),
    ("data.caption=1e-4", "1e-4"), ("data.background=#00ff00", "#00ff00"), ("data.split=2024-01-01", "2024-01-01"),
    ("data.flip=True", True), ("data.flip=yes", True), ("data.flip=OFF", False),
    ("model.alpha=.5", 0.5), ("model.alpha=8.", 8.0), ("model.alpha=8", 8.0), ("model.alpha=None", None),
    ("learn.lr=1E-4", 1e-4), ("learn.lr = 1e-4", 1e-4), ("learn.updates=1e3", 1000), ("model.rank=1_0", 10),
    ("memory.quantize=none", "none"), ("memory.vram=none", None), ("memory.compile=true", True),
    ("method.beta=1e3", 1000.0), ("run.seed=9007199254740993", 9007199254740993),
    ("model.max_tokens=150", 150), ("play.sampler=euler", "euler"), ('data.folder="a b"', "a b"),
]
# fmt: on


@pytest.mark.parametrize(("override", "value"), MEANT, ids=[case[0] for case in MEANT])
def test_a_value_is_taken_as_meant(override: str, value: Any):
    section, _, key = override.partition("=")[0].strip().partition(".")
    found = load_settings("demo", [override]).model_dump()[section][key]
    assert found == value and type(found) is type(value)


def test_a_list_of_sources_can_be_typed():
    sources = load_settings("demo", ['data.sources=[{folder = "a"}, {folder = "b", weight = 2.0}]']).data.sources
    assert [(source.folder, source.weight) for source in sources] == [("a", 1.0), ("b", 2.0)]


PATHS = [place for place, field in every_setting() if Kind(field).is_path]


@pytest.mark.parametrize("place", PATHS)
def test_every_path_is_expanded(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    monkeypatch.setenv("PICS", "/mnt/pics")
    section, _, key = place.partition(".")
    path = tmp_path / "mine.toml"
    for text, meant in {
        "~/a b": "/home/me/a b",
        "$PICS/x": "/mnt/pics/x",
        "${PICS}": "/mnt/pics",
        "a/$none": "a/$none",
    }.items():
        path.write_text(f'[{section}]\n{key} = "{text}"\n', encoding="utf-8")
        assert load_settings(str(path)).model_dump()[section][key] == meant
        assert load_settings("demo", [f"{place}={text}"]).model_dump()[section][key] == meant
    assert load_settings("demo", data__folder="~/x").data.folder == "/home/me/x"


def test_the_paths_were_found():
    assert {"model.base", "model.vae", "model.init_lora", "data.folder", "data.dataset"} <= set(PATHS)


# Other trainers' words


@pytest.mark.parametrize("place", [*peers.SAME, *(place for place, _ in peers.MEANT.values())])
def test_every_answer_names_a_setting_that_exists(place: str):
    assert field_of(place)


def test_every_value_of_an_answer_is_one_that_the_setting_takes():
    for place, value in peers.MEANT.values():
        load_settings("demo", [f"{place}={str(value).lower() if value is True else value}"])


def test_no_word_is_answered_twice_or_is_one_of_ours():
    tables = [peers.PLACES, peers.MEANT, peers.TYPED, peers.WHY]
    words = [word for table in tables for word in table]
    assert len(words) == len(set(words))
    lines = [*peers.SAME.values(), *peers.OPTIONS.values(), *peers.REASONS.values()]
    assert len(words) == sum(len(line.split()) for line in lines) + len(peers.MEANT)


def test_a_short_option_stands_for_a_setting():
    assert all(field_of(place) for place in SHORT.values())


KOHYA = {  # as it is written in a kohya preset: the words of the fix
    "network_dim = 32": "write rank = 32 under [model]", "network_alpha = 16": "write alpha = 16 under [model]",
    'learning_rate = "1e-4"': "write lr = 0.0001 under [learn]", "max_train_epochs = 10": "write epochs = 10 under [learn]",
    'caption_extension = ".txt"': "leave caption_extension out", "min_snr_gamma = 5": 'write weight = "min-snr" under [draw]',
    "v_parameterization = true": 'write prediction = "v" under [model]',
    'train_data_dir = "D:/pics"': 'write folder = "D:/pics" under [data]', "num_repeats = 10": "write weight = 10 under [data]",
    'output_name = "x"': "--name", "max_bucket_reso = 2048": "--resolution 1024",
    "noise_offset = 0.05": "leave noise_offset out",
}  # fmt: skip


@pytest.mark.parametrize("line", KOHYA)
@pytest.mark.parametrize("section", ["", "[learn]", "[training_arguments]"])
def test_a_line_of_another_trainers_preset_is_answered_with_ours(tmp_path: Path, line: str, section: str):
    path = tmp_path / "kohya.toml"
    path.write_text(f"{section}\n{line}\n", encoding="utf-8")
    error = refused(path)
    assert KOHYA[line] in error.problem + error.fix and line.split()[0] in error.problem + error.fix


TYPED = {
    "network_dim=32": "type --rank 32", "model.network_dim=32": "type --rank 32", "network_dim=many": "type --rank 16",
    "learn.learning_rate=1e-4": "type --lr 0.0001", "optimizer_type=AdamW8bit": "type --set learn.optimizer=adamw8bit",
    "optimizer_type=Prodigy": "type --set learn.optimizer=prodigy", "mixed_precision=bf16": "type --set memory.precision=bf16",
    "rank=32": "type --rank 32", "learn.rank=32": "type --rank 32", "guidance=7": "type --set play.guidance=7",
    "pretrained_model_name_or_path=a b.safetensors": 'type --base "a b.safetensors"', "batch_size=4": "type --batch 4",
    "train_data_dir=D:\\pics": "type --data D:/pics", "enable_bucket=True": "type --set data.buckets=true",
    "shuffle_caption=True": "type --set data.shuffle=true",
    "max_token_length=225": "type --set model.max_tokens=225", "clip_skip=2": "type --set model.clip_skip=2",
    "lr_scheduler=cosine": "set its height with --lr 1e-4", "xformers=true": "type --set memory.attention=xformers",
}  # fmt: skip


@pytest.mark.parametrize("override", TYPED)
def test_another_trainers_word_behind_set_is_answered_with_what_to_type(override: str):
    assert TYPED[override] in refused("demo", override).fix


# Presets that are meant to harm

HOSTILE = {
    "brackets": "[data]\nsources = " + "[" * 900 + "]" * 900,
    "tables": "[" + ".".join(["a"] * 10_000) + "]",
    "digits": "[learn]\nupdates = " + "9" * 5000,
    "fewer-digits": "[learn]\nlr = " + "9" * 4000,
    "hexadecimal": "[learn]\nupdates = 0x" + "f" * 9000,
    "a-long-text": '[learn]\nlr = "' + "x" * 60_000 + '"',
    "a-long-key": "[learn]\n" + "x" * 60_000 + " = 1",
    "a-long-section": "[" + "x" * 60_000 + "]",
    "a-long-word": "x" * 60_000 + " = 1",
    "a-long-extends": 'extends = "' + "x" * 60_000 + '"',
    "a-long-method": '[method]\nname = "' + "x" * 60_000 + '"',
    "a-long-line": "x" * 60_000,
    "many-keys": "[learn]\n" + "".join(f"k{i} = 1\n" for i in range(5000)),
    "10-MB": "[learn]\n" + "".join(f"k{i} = 1\n" for i in range(800_000)),
    "lists": "[learn]\nlr = " + "[" * 100 + "]" * 100,
    "escapes": '[learn]\nlr = "\\u001b[31m\\u202e"',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_preset_that_is_meant_to_harm_gets_one_line(tmp_path: Path, content: str):
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    start = time.process_time()
    refused(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("value", ["[" * 9000, "9" * 9000, "x" * 9000, "-" + "9" * 400, "0x" + "f" * 9000, "\x1b[31m"])
def test_a_value_that_is_meant_to_harm_gets_one_line(value: str):
    for section in SECTIONS:
        for key, field in fields_of(section).items():
            if Kind(field).type not in (str, list[str]) and (key, value[:1]) != ("bound", "9"):  # a bound may be infinite
                assert len(refused("demo", f"{section}.{key}={value}").problem) < 300 + LONGEST


@pytest.mark.parametrize("name", ["mine.json", "mine.yaml"])
def test_another_trainers_file_is_said_to_be_no_preset(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert "presets show sdxl-12gb > mine.toml" in refused(tmp_path / name).fix


def test_a_preset_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.toml").write_text("[learn]\nupdates = 7\n", encoding="utf-8")
    assert load_settings("~/mine.toml") == Settings.model_validate(load_settings(str(tmp_path / "mine.toml")).model_dump())
