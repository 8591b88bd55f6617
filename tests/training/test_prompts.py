"""The user's own prompts: drawn at the start and every round, kept with their parameters, and never in the way of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spinlite.config.prompts import Prompt
from spinlite.config.settings import Model, Play, Settings
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.families.toy import Toy
from spinlite.memory import device
from spinlite.selfplay import train
from spinlite.training import prompt_sheet
from spinlite.training.animation import strip
from spinlite.training.cells import read_cells
from spinlite.training.prompts import ask, describe_sizes, draw_prompt, settle
from tests.conftest import small_settings, write_swatches
from tests.toy import Quiet, changed, made

HOSTILE = "<script>x</script> <lora:evil:2> (a) AND b --n </td> --d 3 --s 2"
ASKED = ["red blue --d 7", HOSTILE]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds that draws ASKED, and the same without them, side by side."""
    root = tmp_path_factory.mktemp("asked")
    settings = small_settings(write_swatches(root))
    train(changed(settings, judge__prompts=ASKED), root / "a" / "r", Quiet())
    train(settings, root / "b" / "r", Quiet())
    return root


def test_a_run_draws_them_at_the_start_and_after_every_round(asked: Path):
    folder = asked / "a" / "r" / "samples"
    for k in range(3):
        cells = read_cells(folder / f"round-{k}", "prompt")
        assert [(cell.prompt.text, cell.prompt.seed, cell.prompt.steps) for cell in cells] == [
            ("red blue", 7, 4), ("<script>x</script> <lora:evil:2> (a) AND b", 3, 2),
        ]  # fmt: skip
        with Image.open(folder / f"prompts-{k}.png") as sheet:
            assert sheet.width > (128 if not k else 500)
    first, last = ((folder / f"round-{k}" / "prompt-01.png").read_bytes() for k in (0, 2))
    assert first != last
    text = read_cells(folder / "round-2", "prompt")[1].parameters
    assert text.startswith("<script>x</script> < lora:evil:2> \\(a\\) and b <lora:r-2:1>\nNegative prompt: </td>\nSteps: 2, ")
    assert "Seed: 3, Size: 8x8, Model: 0, RNG: CPU" in text


def test_they_change_nothing_else_of_a_run(asked: Path):
    with_, without = (made(asked / each / "r") for each in "ab")
    shown = [name for name in with_ if "prompt" in name]
    assert len(shown) == 3 * 2 + 3
    for name in shown:
        del with_[name]
    for run in (with_, without):
        del run["events"][0]["settings"]["judge"]["prompts"]
    assert with_ == without


def test_a_run_that_goes_on_draws_what_is_new_without_text_encoders(asked: Path, monkeypatch: pytest.MonkeyPatch):
    settings = small_settings(asked / "swatches")
    folder = asked / "a" / "r"
    before = (folder / "samples" / "round-0" / "prompt-01.png").stat().st_mtime_ns
    encoded, texts = list[str](), {cell.prompt.text for cell in read_cells(folder / "samples" / "round-0", "prompt")}
    encode = Toy.encode_captions

    def watched(self: Any, captions: Any, chunks: int = 1) -> Any:
        encoded.extend(captions)
        return encode(self, captions, chunks)

    monkeypatch.setattr(Toy, "encode_captions", watched)
    train(changed(settings, judge__prompts=ASKED, run__rounds=3), folder, Quiet())
    assert not set(encoded) & texts and (folder / "samples" / "round-0" / "prompt-01.png").stat().st_mtime_ns == before
    train(changed(settings, judge__prompts=["a new one", *ASKED], run__rounds=4), folder, Quiet())
    assert "a new one" in encoded and not set(encoded) & texts
    assert read_cells(folder / "samples" / "round-4", "prompt")[0].prompt.text == "a new one"
    assert len(read_cells(folder / "samples" / "round-0", "prompt")) == 3


def test_a_run_does_without_pictures_that_memory_does_not_suffice_for(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any) -> Any:
        raise SpinliteError("out of memory", fix="")

    monkeypatch.setattr(prompt_sheet, "draw_prompt", fails)
    watch = Quiet()
    outcome = train(changed(small, judge__prompts=["red"], run__rounds=1), tmp_path / "r", watch)
    assert outcome.rounds and watch.said.count("no pictures of your prompts: out of memory") == 2


@pytest.mark.parametrize("wrong", [["@none.txt"], ["red --x 3"], [f"prompt {i}" for i in range(49)]])
def test_wrong_ones_are_refused_before_the_pictures_are_looked_at(small: Settings, tmp_path: Path, wrong: list[str]):
    watch = Quiet()
    with pytest.raises(SpinliteError):
        train(changed(small, judge__prompts=wrong), tmp_path / "r", watch)
    assert not watch.phases


def test_sizes_become_the_models_own_kind_and_a_picture_has_them():
    base = load_family(Model(), device.Device(torch.device("cpu"), "a test"))
    play = Play(steps=1, guidance=1.0)
    given = [Prompt(text="x", width=w, height=h) for w, h in ((96, 64), (70, None), (9, 4096), (None, None))]
    settled = [settle(prompt, base, play) for prompt in given]
    assert [(p.width, p.height) for p in settled] == [(96, 64), (64, 64), (16, 128), (64, 64)]
    assert describe_sizes(given, settled).endswith("64x64 instead of 70x64, 16x128 instead of 9x4096")
    assert describe_sizes(given[:1], settled[:1]) == ""
    picture = strip(base.decode(draw_prompt(base, ask(base, settled[0]), play))[0])
    assert picture.size == (96, 64)


def test_cells_that_are_damaged_or_foreign_are_left_out(asked: Path, tmp_path: Path):
    folder = tmp_path / "round-1"
    folder.mkdir()
    good = (asked / "b" / "r" / "samples" / "round-1" / "heldout-01.png").read_bytes()
    (folder / "heldout-01.png").write_bytes(good)
    (folder / "heldout-02.png").write_bytes(good[:60])
    Image.new("RGB", (8, 8)).save(folder / "heldout-03.png")
    found = read_cells(folder, "heldout")
    assert [cell.path.name for cell in found] == ["heldout-01.png"] and "Seed" not in found[0].parameters
    assert found[0].prompt.text in found[0].parameters
