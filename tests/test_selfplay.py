"""The whole pipeline, on points in the plane."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spinlite import selfplay
from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.export.export import ExportOptions, choose_round, export
from spinlite.families.load import load_family
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.selfplay import Outcome, train
from spinlite.training import learn as learn_module
from spinlite.training import probe as probe_module
from spinlite.training.session import Session
from tests.toy import TOY, Quiet, changed, made, paired, train_with_cuts


def test_a_run_leaves_what_it_promises(toy: Settings, tmp_path: Path):
    watch = Quiet()
    outcome = train(toy, tmp_path / "runs" / "r", watch)
    folder = tmp_path / "runs" / "r"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "settings.toml", "journal.jsonl", "pictures.json", "caches.txt", "state.safetensors", "state-before.safetensors",
        ".lock", "report.html", "now.json", "log.txt", "export/r.safetensors",
        "samples/round-1.png", "samples/round-2.png", *(f"snapshots/{k}.safetensors" for k in range(3)),
        *(f"samples/round-{k}/heldout-{i:02}.png" for k in range(3) for i in range(1, 7)),
    }  # fmt: skip
    assert load_settings(str(folder / "settings.toml")) == toy
    with Image.open(folder / "samples" / "round-2.png") as sheet:
        assert sheet.width > sheet.height > 400
    events = outcome.run.events("judge")
    wanted = {
        "policy_real", "policy_fake", "opponent_real", "opponent_fake", "base_real", "margin", "accuracy", "gate_rate",
        "drift_mean", "drift_deviation",
    }  # fmt: skip
    assert wanted <= events[0].keys()
    assert all(wanted - {"base_real", "drift_mean", "drift_deviation"} <= e.keys() for e in outcome.run.events("update"))
    assert [event["round"] for event in events] == [1, 2] and not outcome.already
    assert len(outcome.run.events("update")) == 2 * toy.learn.length
    assert [p["loss"] for p in outcome.run.events("probe")] == pytest.approx([math.log(2)] * 2)
    for event in outcome.run.events("fakes"):
        assert {len(event[f"{who}_{what}"]) for who in ("real", "fake") for what in ("mean", "deviation")} == {2}
    assert len(outcome.run.events("fakes")) == 2


def test_snapshot_0_is_the_base_and_later_ones_are_not(toy: Settings, tmp_path: Path):
    train(toy, tmp_path / "r", Quiet())
    ladder = [read_tensors(tmp_path / "r" / "snapshots" / f"{k}.safetensors")[0] for k in range(3)]
    ups = [name for name in ladder[0] if "lora_B" in name]
    assert all((ladder[0][name] == 0).all() for name in ups)
    assert all((ladder[1][name] != ladder[2][name]).any() and (ladder[1][name] != 0).any() for name in ups)


@pytest.mark.parametrize("method", ["spin", "seppo", "sft", "spin, the opponent ahead", "seppo, each", "spin, averaged"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    method: str, toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(toy, method__name=method.partition(",")[0], memory__cache_opponent="ahead" in method)
    if "averaged" in method:
        settings = changed(settings, learn__ema=0.9, learn__snapshot_every=8)
    if "each" in method:
        settings = changed(settings, method__reference="each", learn__snapshot_every=8)
    train(settings, tmp_path / "a" / "r", Quiet())
    train_with_cuts(settings, tmp_path / "b" / "r", cuts=6, calls=60, seed=method)
    assert made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


def test_a_run_cut_off_between_two_saves_replays_the_same_updates(toy: Settings, tmp_path: Path):
    """With saves far apart a kill in mid-round loses its updates, and the journal forgets them too."""
    train(toy, tmp_path / "a" / "r", Quiet())
    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "b" / "r", Quiet(lambda title, done: "round 2/2 · learn" in title and done == 13))
    train(toy, tmp_path / "b" / "r", Quiet())
    assert made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


def test_the_length_of_a_round_follows_from_the_pictures_and_stays_as_the_run_began(
    swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = load_settings(TOY, ["learn.epochs=8", "learn.batch=4", "run.rounds=1"], data__folder=str(swatches))
    watch, place = Quiet(lambda title, done: "learn" in title and done == 5), tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        train(settings, place, watch)
    began = Run.open_existing(place).events("begin")[0]["settings"]
    length = began["updates"]
    assert length == 2 * began["train"], "8 times each, 4 in a step"
    assert f"rounds: 1 of {length} steps (updates), batch 4: each picture is seen 8 times a round on average" in watch.said
    assert load_settings(str(place / "settings.toml")) == settings and settings.learn.updates is None
    monkeypatch.setattr("spinlite.config.rounds.FEWEST", 200)  # as if another version counted differently
    monkeypatch.setattr("spinlite.config.rounds.MEASURED", 1000)
    outcome = train(settings, place, Quiet())
    assert outcome.run.events("update")[-1]["update"] == length


def test_a_complete_run_says_so_and_goes_further_on_request(toy: Settings, tmp_path: Path):
    train(toy, tmp_path / "r", Quiet())
    watch = Quiet()
    again = train(toy, tmp_path / "r", watch)
    assert again.already and watch.phases == [] and len(again.rounds) == 2
    further = train(changed(toy, run__rounds=3), tmp_path / "r", Quiet())
    assert len(further.rounds) == 3 and not further.already
    whole = train(changed(toy, run__rounds=3), tmp_path / "other" / "r", Quiet())
    assert [r["policy_real"] for r in whole.rounds] == [r["policy_real"] for r in further.rounds]


def test_a_run_cut_off_before_its_export_still_exports(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def cut(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(selfplay, "export", cut)
        train(toy, tmp_path / "r", Quiet())
    watch = Quiet()
    outcome = train(toy, tmp_path / "r", watch)
    assert outcome.run.export_path.exists() and not outcome.already and not any("learn" in title for title in watch.phases)


def test_edited_captions_get_fakes_of_their_own(toy: Settings, swatches: Path, tmp_path: Path):
    train(toy, tmp_path / "a", Quiet())
    for path in swatches.glob("*.txt"):
        path.write_text(path.read_text(encoding="utf-8") + " edited", encoding="utf-8")
    watch = Quiet()
    train(toy, tmp_path / "b", watch)
    assert "round 1/2 · play" in watch.phases


def test_other_settings_are_refused_by_name(toy: Settings, tmp_path: Path):
    train(toy, tmp_path / "r", Quiet())
    with pytest.raises(SpinliteError, match=r"learn\.lr = 0\.01 there, 0\.02 now") as caught:
        train(changed(toy, learn__lr=0.02), tmp_path / "r", Quiet())
    assert "--name" in caught.value.fix and "delete" not in caught.value.fix


def test_other_pictures_are_refused(toy: Settings, swatches: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "r", Quiet(lambda title, done: "round 1/2 · learn" in title and done == 3))
    (swatches / "p3.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(SpinliteError, match="the pictures or captions have changed"):
        train(toy, tmp_path / "r", Quiet())


def test_the_probe_stops_a_policy_that_is_not_its_opponent(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = probe_module.measure

    def broken(family, slots, name, batch):
        return whole(family, slots, name, batch) * (1.01 if name == "opponent_real" else 1.0)

    monkeypatch.setattr(probe_module, "measure", broken)
    with pytest.raises(SpinliteError, match=r"must be log 2 = 0\.6931"):
        train(toy, tmp_path / "r", Quiet())


def test_growing_heldout_errors_stop_the_run_and_roll_back(toy: Settings, tmp_path: Path):
    """Plain fine-tuning at a rate without measure: there is no opponent to be compared with while it learns."""
    wild = changed(changed(toy, method__name="sft"), learn__lr=0.3, run__rounds=8, data__heldout=0.5)
    outcome = train(wild, tmp_path / "r", Quiet())
    assert outcome.stopped and len(outcome.rounds) < 8
    assert outcome.best == 0 and not outcome.run.export_path.exists()
    last = outcome.run.export_path.with_stem("r-last")
    assert read_tensors(last)[1]["spinlite.round"] == str(len(outcome.rounds)) and outcome.best < len(outcome.rounds)
    again = train(wild, tmp_path / "r", Quiet())
    assert again.already and again.stopped == outcome.stopped
    regardless = train(changed(wild, judge__stop=False), tmp_path / "r", Quiet())
    assert len(regardless.rounds) == 8


def test_methods_choose_their_opponent_from_the_ladder(toy: Settings, tmp_path: Path):
    def opponents(outcome: Outcome) -> list[int]:
        return [event["opponent"] for event in outcome.rounds]

    more = changed(toy, run__rounds=5, learn__updates=2, judge__stop=False)
    assert opponents(train(more, tmp_path / "spin", Quiet())) == [0, 1, 2, 3, 4]
    based = changed(changed(more, method__name="seppo"), method__reference="base")
    assert opponents(train(based, tmp_path / "base", Quiet())) == [0] * 5
    drawn = opponents(train(changed(more, method__name="seppo"), tmp_path / "random", Quiet()))
    assert all(0 <= opponent < k for k, opponent in enumerate(drawn, 1)) and drawn != [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", [{"method__name": "dpo"}, {"method__name": "kto", "method__fakes": "given"}])
def test_dpo_and_kto_learn_from_given_pairs(method: dict[str, str], toy: Settings, swatches: Path, tmp_path: Path):
    pairs = paired(swatches, (10, 0, 10))
    settings = changed(toy, **method, data__folder=str(pairs), method__beta=5.0, run__rounds=1, learn__updates=60)
    settings = changed(settings, judge__stop=False)  # these are won by spoiling fakes, as the guards would say
    watch = Quiet()
    outcome = train(settings, tmp_path / "r", watch)
    assert outcome.rounds[0]["accuracy"] > 0.9 and outcome.rounds[0]["margin"] > 0
    assert not any(title.endswith("play") for title in watch.phases)


@pytest.mark.parametrize("method", ["dro", "ddo", "kto", "sudo"])
def test_other_methods_run_from_equal_errors_to_an_export(method: str, toy: Settings, tmp_path: Path):
    settings = changed(toy, method__name=method)
    watch = Quiet()
    outcome = train(settings, tmp_path / "r", watch)
    names = ("policy_real", "policy_fake", "opponent_real", "opponent_fake")
    level = settings.build_method().loss(**dict.fromkeys(names, torch.ones(1))).item()
    assert [p["loss"] for p in outcome.run.events("probe")] == pytest.approx([level] * 2, abs=1e-4)
    assert len(outcome.rounds) == 2 and outcome.run.export_path.exists()
    assert ("round 1/2 · play" in watch.phases) == (method != "sudo")


def test_shuffled_fakes_are_the_pictures_of_others_and_other_ones_in_each_round(
    toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: dict[int, list[tuple[Any, Any]]] = {1: [], 2: []}
    whole = Session._shuffled

    def spied(self: Any, k: int):
        fakes = whole(self, k)
        seen[k] = [(self.encoded.real([r]).tolist(), fakes([r]).tolist()) for r in self.train]
        return fakes

    monkeypatch.setattr(Session, "_shuffled", spied)
    train(changed(toy, method__name="sudo", learn__updates=2), tmp_path / "r", Quiet())
    for pairs in seen.values():
        assert all(real != fake for real, fake in pairs)
        assert sorted(str(real) for real, _ in pairs) == sorted(str(fake) for _, fake in pairs)
    assert seen[1] != seen[2]


def test_spin_learns_the_pictures_round_by_round(toy: Settings, tmp_path: Path):
    """The pictures lie on a ring; the base is an untrained network. SFT's limit here is 0.72 x the base's error."""
    settings = changed(
        toy, method__beta=2.0, method__anchor=0.05, learn__lr=3e-3, learn__updates=150,
        run__rounds=3, play__guidance=1.0, play__steps=10,
    )  # fmt: skip
    rounds = train(settings, tmp_path / "r", Quiet()).rounds
    errors = [rounds[0]["base_real"], *(r["policy_real"] for r in rounds)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]


def test_a_full_set_of_phases_is_told(toy: Settings, tmp_path: Path):
    watch = Quiet()
    train(toy, tmp_path / "r", watch)
    assert [t for t in watch.phases if t.startswith("round 2")] == [
        "round 2/2 · play", "round 2/2 · learn", "round 2/2 · judge", "round 2/2 · judge (samples)",
        "round 2/2 · judge (training captions)",
    ]  # fmt: skip
    assert any(line.startswith("time: about") and line.endswith("for 2 rounds") for line in watch.said)


def test_quick_rounds_do_not_each_write_the_page(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It shows all rounds so far: written after each, a run of many rounds would soon write nothing else."""
    written = []
    monkeypatch.setattr(selfplay, "write_report", lambda folders, path: written.append(path))
    train(changed(toy, run__rounds=4, learn__updates=1, judge__stop=False), tmp_path / "r", Quiet())
    assert written == [tmp_path / "r" / "report.html"] * 2, "after the first round, and at the end"


def test_the_last_rounds_file_goes_when_the_last_is_the_best(toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that goes on leaves no file of a round that was the last once."""
    run = Run(tmp_path / "r", toy)
    for rounds, best in ((2, 1), (3, 3)):
        monkeypatch.setattr(Run, "best", property(lambda self, best=best: best))
        train(changed(toy, run__rounds=rounds, judge__stop=False), run.folder, Quiet())
        assert read_tensors(run.export_path)[1]["spinlite.round"] == str(best)
        assert run.last_export_path.exists() == (best < rounds)


def test_a_run_that_was_cut_off_before_its_first_judgement_has_its_start_and_its_round(toy: Settings, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "r", Quiet(lambda title, done: title == "round 1/2 · judge"))
    run = Run.open_existing(tmp_path / "r")
    assert run.best == 0
    with pytest.raises(SpinliteError, match="has no finished round"):
        choose_round(run, "best")
    base = load_family(run.settings.model, device.choose_device())
    for k in (0, 1):
        export(run, base, k, tmp_path / f"{k}.safetensors", ExportOptions())
        said = read_tensors(tmp_path / f"{k}.safetensors")[1]
        assert said["spinlite.round"] == str(k) and said["spinlite.figures"] == "{}"
    with pytest.raises(SpinliteError, match="give one of 0 to 1"):
        export(run, base, 2, tmp_path / "2.safetensors", ExportOptions())
