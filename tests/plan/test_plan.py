"""The plan: a simulation without data gives what is really used, every preset fits its card, and pins hold."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Screen
from torch import Tensor, nn

from spinlite.cli import plan_screen
from spinlite.cli.app import main
from spinlite.cli.plan import _free_memory
from spinlite.config.load import load_settings, validate_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Learn, Memory, Model, Settings
from spinlite.errors import SpinliteError
from spinlite.families.load import note_of
from spinlite.lora.adapters import Slots
from spinlite.memory.device import Levers
from spinlite.plan import peaks
from spinlite.plan.card import DESKTOP, GIB, PYTHON, Card
from spinlite.plan.fit import Fit
from spinlite.plan.known import Known
from spinlite.plan.make import make_plan
from spinlite.plan.meta import META
from spinlite.plan.phase_costs import PhaseCosts
from spinlite.plan.plan import HELDOUT, PEAKS, TRAIN, Plan
from spinlite.plan.simulation import simulate, simulating
from spinlite.runs.run import Run
from spinlite.selfplay import train
from tests.toy import TOY, Quiet, changed


def card(gb: float, kind: str = "cuda") -> Card:
    return Card("a card", kind, gb * GIB, "bf16", 1e13, 3e11, 1e-5, False)


def tiny(tiny_bases: Path, **sections: Any) -> Settings:
    return Settings(**{"model": Model(base=str(tiny_bases / "sd15"), rank=4), "learn": Learn(updates=100)} | sections)


@pytest.fixture(scope="session")
def fit(cache: Path) -> Callable[[Settings, float], Fit]:
    """Combinations for settings of `tiny` on a card of so many GB; their networks are simulated once."""

    def costs_of(settings: Settings) -> Callable[[str, str], PhaseCosts]:
        return lambda precision, quantize: PhaseCosts(settings, precision, quantize, cache)

    return lambda settings, gb: Fit(settings, card(gb), costs_of(settings), 90, 10)


Fitted = Callable[[Settings, float], Fit]


def test_a_storage_counts_once_from_its_making_to_its_last_holder():
    def call() -> Tensor:
        x = torch.empty(61, 1000, device=META)  # 4000 bytes a sample
        y = x * 2  # both are there: 8000
        del x
        return (y.view(61, 10, 100).transpose(1, 2) + torch.empty(1000, device=META).view(100, 10)).sum((1, 2))

    cost = simulate(call)
    assert cost.peaks == [(8000, 4000, 0)] and cost.kept == (4, 0)
    assert cost.peak(3) == 3 * 8000 + 4000 and cost.peak(3, (10, 1)) == 3 * 8010 + 4001


def test_what_is_made_of_one_sample_grows_with_the_batch():
    def call() -> list[Tensor]:
        return [torch.cat([row * 2, torch.empty(24, device=META)]) for row in given]  # 4000, 96, and together 4096 bytes

    given = torch.empty(61, 1000, device=META)
    cost = simulate(call)
    assert cost.kept == (4096, 0) and cost.peak(61) == pytest.approx(62 * 4096, abs=61)


def test_copies_count_where_samples_are_put_together():
    with simulating() as mode:
        copy = mode.copy(lambda: torch.empty(61, 1000, device=META))
        kept = [copy + 1]
        del copy
        kept.append(torch.empty(61, 750, device=META))
    assert mode.cost().peaks == [(4000, 0, 4000), (7000, 0, 0)]
    assert (mode.cost().peak(2), mode.cost().peak(2, copied=True)) == (14_000, 16_000)


def test_layers_choose_as_they_do_in_a_batch_of_that_size(tmp_path: Path):
    """A LoRA of rank 1 on 400 inputs and outputs is added to the weights above 200 places: here from 5 samples of 41 on."""
    net, asked, weights = nn.Sequential(nn.Linear(400, 400, device=META)), list[int](), 400 * 400 * 4
    with simulating():
        Slots(net, ["0"], 1, 1.0, 0)

    @torch.no_grad()
    def fixed(samples: int) -> int:
        asked.append(samples)
        return simulate(lambda: net(torch.empty(61, 41, 400, device=META))).peak(0)

    known = Known(tmp_path, "x")
    found = {n: known.recall("x", n, lambda n=n: fixed(n)) for n in (1, 16, 4, 5, 2)}
    assert asked == [1, 16] and found[1] == found[2] == found[4] < weights < found[5] == found[16]
    assert Known(tmp_path, "x").recall("x", 4, lambda: fixed(4)) == found[4] and asked == [1, 16]


def test_work_is_what_torchs_counter_counts():
    layer = nn.Linear(30, 50, device=META)
    cost = simulate(lambda: layer(torch.empty(61, 30, device=META)))
    assert cost.operations() == 2 * 30 * 50
    assert cost.seconds(7, 1e9, 1e30, 0) == pytest.approx(7 * 2 * 30 * 50 / 1e9)
    assert cost.seconds(7, 1e30, 1e30, 0.5) >= 0.5


def test_each_way_to_save_memory_saves_it_and_takes_longer(tiny_bases: Path, fit: Fitted):
    found = fit(tiny(tiny_bases), 8)
    plain = found.row(Levers())
    for saved in (found.row(Levers(checkpointing=True)), found.row(Levers(one_graph=True))):
        assert saved.memory["learn"] < plain.memory["learn"] and saved.time > plain.time
    peaks = [found.row(Levers(micro_batch=n)).memory["learn"] for n in (1, 2, 4, 8)]
    assert peaks == sorted(peaks) and len(set(peaks)) == 4
    assert found.row(Levers(play_batch=4)).memory["play"] < plain.memory["play"]


def test_the_fastest_that_fits_is_chosen(tiny_bases: Path, fit: Fitted):
    settings = tiny(tiny_bases, learn=Learn(updates=100, batch=256))
    chosen, tried = fit(settings, 1000).choose()
    assert chosen.levers.micro_batch is None and not chosen.levers.checkpointing
    assert chosen.time == min(row.time for row in tried)
    narrow = fit(settings, fit(settings, 1000).row(Levers(micro_batch=100)).peak / GIB)
    tight, rows = narrow.choose()
    assert len(rows) == 4 and tight.peak <= narrow._card.memory < chosen.peak
    assert tight.time == pytest.approx(min(row.time for row in rows if row.peak <= narrow._card.memory), rel=0.04)


def test_pins_are_kept(tiny_bases: Path, fit: Fitted):
    pins = Memory(checkpointing=True, one_graph=False, micro_batch=2, play_batch=3, cache_opponent=True)
    chosen, tried = fit(tiny(tiny_bases, memory=pins), 8).choose()
    assert len(tried) == 1
    for name, value in pins.model_dump(exclude_none=True).items():
        assert getattr(chosen.levers, name) == value


def test_where_nothing_fits_it_is_said_what_would_be_needed(tiny_bases: Path, fit: Fitted):
    needs = r"a card has 0.1 GB for this run, but even the smallest memory settings need \d+\.\d GB"
    with pytest.raises(SpinliteError, match=needs) as error:
        fit(tiny(tiny_bases, memory=Memory(play_batch=16, quantize="none")), 0.1).choose()
    assert "remove memory.quantize, memory.play_batch" in error.value.fix


@pytest.mark.parametrize("name", shipped_presets())
def test_every_preset_fits_the_card_it_names_and_takes_what_its_list_says(name: str, cache: Path):
    settings = load_settings(name)
    assert settings.memory.vram or settings.model.base == "demo"
    plan = make_plan(name, settings, peaks.card_of_preset(settings), TRAIN, HELDOUT, cache)
    listed = json.loads(PEAKS.read_text(encoding="utf-8"))
    assert plan.peak == pytest.approx(listed[name], rel=0.01), "python -m spinlite.plan.peaks writes them anew"
    assert listed.keys() == shipped_presets().keys()
    assert plan.peak <= plan.limit < (settings.memory.vram or 17) * GIB
    chosen = [row for row in plan.tried if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["fits"] and chosen[0]["levers"] == plan.levers
    assert ("17 frames of 480x480 px" in plan.model) == (name == "wan-16gb")
    assert plan.thing == ("clip" if name.startswith("wan") or "animatediff" in name else "picture")
    assert not name.endswith("gb") or name.endswith(f"-{settings.memory.vram:g}gb")
    assert (plan.levers["quantize"] == "int8") == (name in ("sdxl-8gb", "klein-12gb", "zimage-12gb", "zimage-16gb"))
    assert set(plan.memory) == {"encode", "play", "learn", "judge"}
    assert (plan.seconds["play"] > 0) == (settings.method["name"] != "sft") and plan.seconds["learn"] > 0
    assert all(plan.disk.values()) and plan.ram > PYTHON


def test_what_was_simulated_is_read_again(tiny_bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = tiny(tiny_bases)
    first: Plan = make_plan("x", settings, card(8), 90, 10, tmp_path)

    def never(*_: Any) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr("spinlite.plan.phase_costs.load_family", never)
    assert make_plan("x", settings, card(8), 90, 10, tmp_path) == first
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"rank": 5})})
    with pytest.raises(AssertionError, match="again"):
        make_plan("x", other, card(8), 90, 10, tmp_path)
    assert any(json.loads(path.read_text()).get("sizes") for path in tmp_path.glob("*.json"))


Command = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`spinlite WORDS` with a cache of its own -> (exit code, output, errors)."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    def run(*words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["spinlite", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def written(folder: Path, base: Path, memory: str) -> str:
    path = folder / "mine.toml"
    path.write_text(f'[model]\nbase = "{base.as_posix()}"\nrank = 4\n[memory]\n{memory}\n', encoding="utf-8")
    return str(path)


def test_a_plan_is_printed_kept_and_shown_again(
    tiny_bases: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    preset = written(tmp_path, tiny_bases / "sd15", "vram = 8.0")
    code, out, _ = command("plan", preset)
    assert code == 0 and "8 GB card: 7.6 GB for this run" in out
    assert "→ fast, all pictures at once: encode" in out and "time 1.00x" in out and "100 pictures" in out
    assert out.splitlines()[-1].split(maxsplit=1) == ["next", f"spinlite train {preset} --data MY-PICTURES"]
    monkeypatch.setattr("spinlite.plan.make.make_plan", None)  # a second time nothing is made
    code, out, _ = command("plan", preset, "--json")
    found = json.loads(out)
    assert code == 0 and found["levers"]["play_batch"] == 16 and found["peak"] == max(found["memory"].values())


def test_a_plan_says_what_a_user_of_the_base_must_know(capsys: pytest.CaptureFixture[str], toy: Settings):
    made = make_plan("x", toy, card(8), 90, 10, None)
    for note, lines in (("", 0), ("not for sale", 1)):
        plan_screen.show(Screen(width=200), replace(made, note=note), "100 pictures", "spinlite train x")
        assert sum(line.split()[:1] == ["note"] for line in capsys.readouterr().out.splitlines()) == lines
    assert note_of(toy.model) == "" and "forbids commercial use" in note_of(Model(base="blank:klein-9b"))
    assert "CircleStone" in note_of(load_settings("anima-12gb").model) and not note_of(load_settings("sdxl-12gb").model)


def test_a_plan_counts_pictures_or_clips_by_their_number(capsys: pytest.CaptureFixture[str], toy: Settings):
    made = make_plan("x", toy, card(8), 90, 10, None)
    one = [row | {"levers": row["levers"] | {"micro_batch": 1}} for row in made.tried]
    clips = replace(made, thing="clip", levers=made.levers | {"play_batch": 1}, tried=one)
    plan_screen.show(Screen(width=200), made, "", "")
    plan_screen.show(Screen(width=200), clips, "", "")
    counted = re.findall(r"\w+ (?:picture|clip)s? at once", capsys.readouterr().out)
    ways = len(made.tried)
    assert counted == [*["all pictures at once"] * ways, "16 pictures at once", *["1 clip at once"] * ways, "1 clip at once"]


def test_a_plan_for_what_is_free_is_made_again_when_that_has_changed(command: Command, monkeypatch: pytest.MonkeyPatch):
    free = _free_memory()
    assert 0 < free[2] < 10_000, "memory in steps of 2 GiB"
    monkeypatch.setattr("spinlite.cli.plan._free_memory", lambda: free)
    assert "for this run" in command("plan", TOY)[1]
    monkeypatch.setattr("spinlite.plan.make.make_plan", lambda *_: pytest.fail("made again"))
    assert "for this run" in command("plan", TOY)[1]
    free = [*free[:2], free[2] + 1]
    with pytest.raises(pytest.fail.Exception, match="made again"):
        command("plan", TOY)


def test_a_plan_counts_the_pictures_that_a_run_would_take(command: Command, swatches: Path):
    texts = {path.stem: path.read_text(encoding="utf-8") for path in swatches.glob("*.txt")}
    for name in texts:
        (swatches / f"{name}.txt").unlink()
    code, _, err = command("plan", TOY, "--data", str(swatches))
    assert code == 1 and "0 can be used with a caption" in err
    rows = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in texts.items()]
    (swatches / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    code, out, _ = command("plan", TOY, "--data", str(swatches))
    assert out.splitlines()[-1].split(maxsplit=1) == ["next", f"spinlite train {TOY} --data {swatches}"]
    counts = re.search(r"(\d+) captioned pictures to learn from and (\d+) for validation", " ".join(out.split()))
    assert code == 0 and counts and int(counts[1]) + int(counts[2]) == 40
    _, out, _ = command("plan", TOY, "--data", str(swatches), "--set", "learn.epochs=12")
    length = -(-12 * int(counts[1]) // 8)
    assert f"2 of {length} steps (updates), batch 8: each picture is seen 12 times a round on average" in " ".join(out.split())


def test_a_plan_that_can_not_be_ends_with_an_error(tiny_bases: Path, tmp_path: Path, command: Command):
    preset = written(tmp_path, tiny_bases / "sd15", 'vram = 0.5\nquantize = "none"')
    code, _, err = command("plan", preset)
    assert code == 1 and "even the smallest memory settings need" in err and "fix:   remove memory.quantize" in err


def test_presets_are_listed_and_shown_with_every_default(command: Command):
    code, out, _ = command("presets")
    assert code == 0 and all(name in out for name in shipped_presets())
    planned = json.loads(PEAKS.read_text(encoding="utf-8"))["sdxl-12gb"] / GIB
    row = next(line for line in out.splitlines() if line.startswith("sdxl-12gb"))
    assert row.split() == ["sdxl-12gb", "stable-diffusion-xl-base-1.0", "12", "GB", f"{planned:.1f}", "GB", "spin"]
    code, out, _ = command("presets", "show", "sdxl-16gb")
    assert code == 0 and validate_settings(tomllib.loads(out)) == load_settings("sdxl-16gb")


# The run that takes its levers from a plan


def on(settings: Settings, **memory: Any) -> Settings:
    return settings.model_copy(update={"memory": Memory(**memory)})


def least(settings: Settings) -> float:
    """GB of a named card on which these settings just fit."""
    return (make_plan("r", settings, card(1000, "cpu"), 36, 4, None).peak + 1) / GIB / (1 - DESKTOP)


@pytest.fixture
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinlite.selfplay.cache_folder", lambda: cache)


@pytest.mark.usefixtures("cached")
def test_a_run_takes_the_levers_of_its_plan_and_says_why(small: Settings, tmp_path: Path):
    watch, pins = Quiet(), {"one_graph": False, "checkpointing": False, "play_batch": 1}
    large = changed(small, learn__batch=256)
    outcome = train(on(large, vram=least(on(large, micro_batch=64, **pins)), **pins), tmp_path / "r", watch)
    assert outcome.run.events("begin")[0]["levers"]["micro_batch"] == 64 and not outcome.run.events("levers")
    memory, peak = (line for line in watch.said if line.startswith(("memory:", "peak:")))
    assert "learn 64 of 256 samples per step" in memory and "0.6 of 0.6 GB at most (" in peak
    assert watch.phases.index("plan what fits the card") < watch.phases.index("encode pictures and captions")


@pytest.mark.usefixtures("cached")
def test_without_a_card_or_a_size_there_is_no_plan(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spinlite.selfplay.plan_device", lambda *_: pytest.fail("planned"))
    assert len(train(small, tmp_path / "r", Quiet()).rounds) == 2


@pytest.mark.usefixtures("cached")
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("spinlite.selfplay.load_family", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SpinliteError, match=r"has 0\.1 GB for this run, but even the smallest memory settings need") as error:
        train(on(small, vram=0.1, quantize="none"), tmp_path / "r", Quiet())
    assert "remove memory.quantize" in error.value.fix and not (tmp_path / "r").exists()


@pytest.mark.usefixtures("cached")
def test_a_run_goes_on_as_it_began_while_that_fits_and_never_changes_how_its_base_is_quantised(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a card that has no room for the base in full, then on one that has."""
    counted = Fit._bytes

    def large(fit: Fit, costs: PhaseCosts, levers: Levers) -> dict[str, int]:
        return {name: size + GIB * (levers.quantize == "none") for name, size in counted(fit, costs, levers).items()}

    monkeypatch.setattr(Fit, "_bytes", large)

    def run(rounds: int, **memory: Any) -> tuple[Run, str]:
        watch = Quiet()
        more = small.model_copy(update={"run": small.run.model_copy(update={"rounds": rounds})})
        outcome = train(on(more, **memory), tmp_path / "r", watch)
        assert len(outcome.rounds) == rounds and outcome.run.export_path.exists()
        return outcome.run, "\n".join(line for line in watch.said if line.startswith(("memory:", "peak:")))

    pins = {"checkpointing": True, "play_batch": 2}
    began, said = run(1, vram=1.0, **pins)
    assert began.events("begin")[0]["levers"]["quantize"] == "int8" and "base in 8 bits" in said
    assert "; the base in full precision would need 1." in said
    again, said = run(2, vram=1.0, **pins)
    assert not again.events("levers") and "ways that fit" not in said
    for rounds in (3, 4):
        changed = run(rounds, vram=8.0, play_batch=3)[0].events("levers")
        assert [(event["levers"]["quantize"], event["levers"]["play_batch"]) for event in changed] == [("int8", 3)]
    with pytest.raises(SpinliteError, match="even the smallest memory settings need") as error:
        run(5, vram=0.1)
    assert error.value.fix.startswith("close other programs that use this memory")
