"""Failures injected into whole runs: each is seen by the guard that is there for it, undone, and said in words."""

import contextlib
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spinlite import selfplay
from spinlite.config.settings import Model, Settings
from spinlite.families.toy import Toy
from spinlite.maths.draws import gaussian
from spinlite.methods.dro import DRO
from spinlite.methods.kto import KTO
from spinlite.methods.seppo import SePPO
from spinlite.methods.spin import SPIN
from spinlite.methods.sudo import SUDO
from spinlite.runs.store import read_tensors
from spinlite.selfplay import Outcome, train
from spinlite.training import learn as learn_module
from spinlite.training.guards import LONG, PAIRS, find_alarm, pull, won
from spinlite.training.heldout import heldout_errors
from spinlite.training.session import Session
from tests.conftest import Command
from tests.toy import TOY, Quiet, changed, made, paired

FREE = {"method__beta": 0.02, "method__bound": 1e9, "method__anchor": 0.0}  # no leash, and nothing else in the way
Broken = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def sane(toy: Settings) -> Settings:
    """The toy with a leash and a rate at which three rounds lower the held-out error, measured on 20 pictures."""
    return changed(
        toy, method__beta=2.0, method__anchor=0.05, learn__lr=3e-3, learn__updates=40, run__rounds=3, data__heldout=0.5,
        play__guidance=1.0,
    )  # fmt: skip


def ended(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, watch: Quiet | None = None) -> Outcome:
    """A run to its end; and its exported LoRA, in a network of its own, denoises held-out pictures no worse than the base."""
    seen: dict[str, Session] = {}
    begin = selfplay.begin
    monkeypatch.setattr(selfplay, "begin", lambda session: (seen.update(session=session), begin(session))[1])
    outcome = train(settings, folder, watch or Quiet())
    session = seen["session"]
    plain = Toy(Model(base="0"), session.device)

    class Alone:
        def use(self, who: str) -> Any:
            return contextlib.nullcontext()

    def error() -> float:
        records, draws, alone = session.heldout, session.settings.judge.draws, Alone()
        found = heldout_errors(plain, alone, session.encoded, records, None, ["base_real"], draws, 64, lambda done, of: None)  # pyright: ignore[reportArgumentType]
        return found["base_real"].mean().item()

    base = error()
    assert outcome.run.export_path.exists() == (outcome.best > 0), "nothing is handed over that nobody trained"
    if outcome.best:
        with plain.with_lora_file(outcome.run.export_path, 1.0):
            assert error() <= base
    return outcome


def noise_for_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opponent plays noise, four times as wide as its model's."""
    whole = Session.sample_snapshot

    def played(session: Session, who: Any, snapshot: Any, records: Any, title: str, *names: Any) -> Any:
        fakes = whole(session, who, snapshot, records, title, *names)
        return fakes if names[0] != "train" else lambda asked: torch.stack([4 * gaussian((2,), "noise", r.key) for r in asked])

    monkeypatch.setattr(Session, "sample_snapshot", played)


def other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """From round 2 on whoever enters as snapshot 0 is another network."""
    play, enter, late = Session.play, Session.load_opponent, []

    def from_round_2(session: Session, k: int) -> Any:
        late.extend([k] * (k > 1))
        return play(session, k)

    def broken(session: Session, snapshot: Any) -> None:
        enter(session, snapshot)
        if snapshot == 0 and late:
            torch.manual_seed(3)
            own = sorted(session.load_snapshot(snapshot).items())  # a file gives its tensors in any order
            session.slots.load("opponent", {name: x + torch.randn_like(x) for name, x in own})

    monkeypatch.setattr(Session, "play", from_round_2)
    monkeypatch.setattr(Session, "load_opponent", broken)


def a_colour_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's samples get redder and redder, though it denoises as well as ever."""
    whole = Session.sample_snapshot

    def played(session: Session, who: Any, snapshot: Any, records: Any, title: str, *names: Any) -> Any:
        fakes = whole(session, who, snapshot, records, title, *names)
        return fakes if who != "policy" else lambda asked: fakes(asked) + torch.tensor([1.2 * int(snapshot), 0.0])

    monkeypatch.setattr(Session, "sample_snapshot", played)


def overflow(when: str) -> Broken:
    """The network says infinity from round 2 on while a phase of this kind is under way."""

    def broken(monkeypatch: pytest.MonkeyPatch) -> None:
        denoise, phase, now = Toy.denoise, Quiet.phase, [""]

        def limited(toy: Toy, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
            return denoise(toy, x_t, t, cond) * (math.inf if now[0] == f"round 2/3 · {when}" else 1.0)

        @contextlib.contextmanager
        def told(self: Quiet, title: str, total: int):
            now[0] = title
            try:
                with phase(self, title, total) as progress:
                    yield progress
            finally:
                now[0] = ""

        monkeypatch.setattr(Toy, "denoise", limited)
        monkeypatch.setattr(Quiet, "phase", told)

    return broken


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings alone are what is wrong."""


UNDONE: list[tuple[str, dict[str, Any], Broken, str, str]] = [  # what is wrong, how, guard, round, words
    ("a rate a hundred times too large", {"learn__lr": 0.3}, nothing, "runaway", "the error on real pictures has not fallen"),
    ("a rate ten times too large, with KTO", {"method__name": "kto", "method__beta": 2.0, "learn__lr": 0.03,
     "learn__updates": 100}, nothing, "margin", "has outgrown the opponent's errors ("),
    ("an opponent that plays noise", {}, noise_for_fakes, "fakes", "so they can't be its own"),
    ("samples that are not numbers", {}, overflow("play"), "numbers", "samples are not numbers"),
    ("a loss that is not a number", {}, overflow("learn"), "numbers", "is not a number"),
    ("held-out errors that are not numbers", {}, overflow("judge"), "numbers", "the error on unseen pictures is not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "broken", "guard", "words"), UNDONE, ids=[each[0] for each in UNDONE])
def test_a_round_that_goes_wrong_is_undone_and_the_run_ends_with_what_it_had(
    name: str, values: dict[str, Any], broken: Broken, guard: str, words: str, sane: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    if "method__name" in values:
        sane = changed(sane, method__name=values["method__name"])
        values = {place: value for place, value in values.items() if place != "method__name"}
    broken(monkeypatch)
    watch = Quiet()
    outcome = ended(changed(sane, **values), tmp_path / "r", monkeypatch, watch)
    [event] = outcome.run.events("guard")
    k = event["round"]
    assert event["guard"] == guard and words in event["why"] and event["back"] == 0
    assert outcome.stopped and words in outcome.stopped and outcome.stopped in watch.said
    assert ("rolled back to the start" if k == 1 else "rolled back to the end of round 1") in outcome.stopped
    assert [e["round"] for e in outcome.rounds] == list(range(1, k)) and outcome.best <= k - 1
    assert not outcome.run.snapshot_path(k).exists() and not any(e["round"] == k for e in outcome.run.events("update"))
    if outcome.best:
        assert read_tensors(outcome.run.export_path)[1]["spinlite.round"] == str(outcome.best)


JUDGED: list[tuple[str, dict[str, Any], Broken, str]] = [
    ("other weights", {"method__reference": "base"}, other_weights, "opponent was not snapshot 0"),
    ("a colour cast", {}, a_colour_cast, "samples are further from your pictures"),
]


@pytest.mark.parametrize(("name", "values", "broken", "words"), JUDGED, ids=[each[0] for each in JUDGED])
def test_a_round_that_the_judge_finds_wrong_is_the_last_and_not_the_best(
    name: str, values: dict[str, Any], broken: Broken, words: str, sane: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    broken(monkeypatch)
    settings = changed(changed(sane, method__name="seppo"), method__beta=2.0, method__gate="none", **values)
    outcome = ended(settings, tmp_path / "r", monkeypatch)
    last = outcome.rounds[-1]
    assert outcome.stopped and words in outcome.stopped and last["stopped"] == outcome.stopped
    assert last["round"] < 3 and outcome.best < last["round"]


def test_a_run_in_order_meets_no_guard(sane: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outcome = ended(sane, tmp_path / "r", monkeypatch)
    assert outcome.stopped is None and outcome.best == 3 and not outcome.run.events("guard") and not outcome.run.events("won")
    assert all(0 < event["away_mean"] < 1 for event in outcome.rounds)


@pytest.mark.parametrize(("every", "kept"), [(0, 32), (5, 35)], ids=["kept every 256 pairs", "a snapshot every 5 updates"])
def test_a_beta_a_hundred_times_too_small_leaves_the_policy_from_before_fakes_ran_away(
    every: int, kept: int, sane: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """8 pairs an update: at 43 the guard acts, looks back at 64 pairs, and takes the last policy from before them."""
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(sane, **FREE, learn__updates=100, learn__snapshot_every=every)
    outcome = ended(settings, tmp_path / "r", monkeypatch)
    [event] = outcome.run.events("guard")
    run = outcome.run
    assert (event["guard"], event["round"], event["back"]) == ("runaway", 1, kept) and kept <= event["update"] - PAIRS / 8
    assert outcome.stopped and f"rolled back to update {kept} of round 1" in outcome.stopped
    assert run.events("update")[-1]["update"] == kept and run.snapshots_within(1) == [
        f"1-{u}" for u in range(5, kept + 1, 5) if every
    ]
    assert outcome.best == 1 and outcome.rounds[0]["policy_real"] < 0.95 * outcome.rounds[0]["base_real"]
    cut = Quiet(lambda title, done: title.endswith("learn") and done == kept + 1)
    with pytest.raises(KeyboardInterrupt):
        train(changed(settings, judge__stop=False), tmp_path / "b" / "r", cut)
    state, last = read_tensors(tmp_path / "b" / "r" / "state.safetensors")[0], read_tensors(run.snapshot_path(1))[0]
    assert all(torch.equal(last[name], state[f"policy/{name}"]) for name in last)
    assert not (run.folder / "good").exists()
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "c" / "r", Quiet(lambda title, done: "judge" in title))
    assert train(settings, tmp_path / "c" / "r", Quiet()).stopped == outcome.stopped


def test_a_run_that_is_cut_off_before_a_guard_acts_is_undone_alike(
    sane: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    settings = changed(sane, **FREE, learn__updates=100)
    whole = train(settings, tmp_path / "a" / "r", Quiet())
    for cut in (20, 40, 43):
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "b" / "r", Quiet(lambda title, done, cut=cut: title.endswith("learn") and done == cut))
    again = train(settings, tmp_path / "b" / "r", Quiet())
    assert again.stopped == whole.stopped and made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


def test_a_run_that_was_undone_goes_on_more_gently(sane: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wild = changed(sane, learn__lr=0.3, run__rounds=2)
    first = ended(wild, tmp_path / "r", monkeypatch)
    assert first.stopped and not first.rounds
    again = train(wild, tmp_path / "r", Quiet())
    assert again.already and again.stopped == first.stopped
    gentle = ended(changed(wild, learn__lr=3e-3), tmp_path / "r", monkeypatch)
    assert gentle.stopped is None and len(gentle.rounds) == 2 and not gentle.already
    plain = train(changed(wild, learn__lr=3e-3), tmp_path / "plain" / "r", Quiet())
    assert [e["policy_real"] for e in plain.rounds] == [e["policy_real"] for e in gentle.rounds]


def test_a_mended_run_that_is_cut_off_at_once_still_goes_on(sane: Settings, tmp_path: Path):
    wild = changed(sane, learn__lr=0.3, run__rounds=1)
    train(wild, tmp_path / "r", Quiet())
    with pytest.raises(KeyboardInterrupt):
        train(changed(wild, learn__lr=3e-3), tmp_path / "r", Quiet(lambda title, done: title.endswith("learn")))
    assert len(train(changed(wild, learn__lr=3e-3), tmp_path / "r", Quiet()).rounds) == 1


def test_without_the_guards_a_run_goes_on_regardless(sane: Settings, tmp_path: Path):
    wild = changed(sane, learn__lr=0.3, run__rounds=2, judge__stop=False)
    outcome = train(wild, tmp_path / "r", Quiet())
    assert len(outcome.rounds) == 2 and not outcome.stopped and not outcome.run.events("guard")


def test_a_round_whose_pairs_are_all_won_ends_and_the_next_begins(toy: Settings, swatches: Path, tmp_path: Path):
    """Given pairs that differ in everything: told apart soon, and nothing is left to learn from them."""
    pairs = paired(swatches, (255, 255, 255))
    settings = changed(toy, method__name="dpo", data__folder=str(pairs), method__beta=500.0, learn__updates=120)
    watch = Quiet()
    outcome = train(settings, tmp_path / "r", watch)
    ends = outcome.run.events("won")
    assert ends and all(e["update"] < 120 for e in ends) and len(outcome.rounds) == 2
    early = f"round {ends[0]['round']} ends early, after {ends[0]['update']} of 120 updates: the policy has won all its pairs"
    assert any(line.startswith(early) for line in watch.said)
    whole = train(changed(settings, judge__stop=False), tmp_path / "whole" / "r", Quiet())
    assert len(whole.run.events("update")) == 240 and not whole.run.events("won")


def errors(*values: float) -> dict[str, Tensor]:
    names = ("policy_real", "policy_fake", "opponent_real", "opponent_fake")
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in zip(names, values, strict=True)}


def test_the_pull_by_hand():
    """beta 10, margin .2: the slopes are beta sigmoid(-2) each, and beta / 2 at a tie. The anchor doesn't count."""
    found, tie = errors(0.1, 0.4, 0.2, 0.3), errors(0.2, 0.3, 0.2, 0.3)
    spin = SPIN(beta=10, bound=math.inf, anchor=0.3)
    assert pull(spin, found) == pytest.approx(2 / (1 + math.exp(2)))
    assert pull(spin, found, torch.tensor([2.0])) == pytest.approx(2 / (1 + math.exp(4)))
    for method in (spin, KTO(), DRO(), SUDO(), SePPO()):
        assert pull(method, tie) == pytest.approx(1)
    assert pull(DRO(beta=10), found) == 0 and pull(KTO(beta=10), errors(0.1, 9.0, 2.2, 0.3)) == pytest.approx(0, abs=1e-6)


def figures(**values: float) -> dict[str, float]:
    names = {"policy_real": 0.1, "opponent_real": 0.1, "policy_fake": 0.1, "opponent_fake": 0.1, "margin": 0.0, "pull": 1.0}
    return names | values


@pytest.mark.parametrize(("values", "guard"), [
    ({}, None),
    ({"margin": 0.099}, None),
    ({"margin": 0.101}, "margin"),
    ({"margin": 0.101, "opponent_fake": 0.2, "policy_fake": 0.2}, None),
    ({"policy_fake": 0.151}, "runaway"),
    ({"policy_fake": 0.151, "policy_real": 0.099}, None),
    ({"policy_real": 0.151}, "runaway"),
    ({"policy_fake": 0.149}, None),
    ({"opponent_fake": 0.41, "policy_fake": 0.41}, "fakes"),
    ({"opponent_fake": 0.39, "policy_fake": 0.39}, None),
], ids=str)  # fmt: skip
def test_what_each_guard_takes_for_wrong(values: dict[str, float], guard: str | None):
    recent = [figures(**values)] * PAIRS
    found = find_alarm(recent, 1, True)
    assert (found and found[0]) == guard
    assert find_alarm(recent[1:], 1, True) is None, "too few pairs"
    assert (find_alarm(recent[: PAIRS // 16], 16, True) or (None,))[0] == guard, "pairs count, not updates"
    if guard == "fakes":
        assert find_alarm(recent, 1, False) is None, "given pairs may be as strange as they like"


def test_a_round_is_won_only_when_all_of_its_latest_pairs_are():
    done, open_ = figures(pull=0.0, margin=0.01), figures(pull=1.0)
    assert won([open_, *[done] * LONG], 1) and not won([done] * (LONG - 1), 1)
    assert not won([*[done] * (LONG - 3), *[open_] * 3], 1)
    assert not won([figures(pull=0.0, margin=-0.01)] * LONG, 1) and not won([{"policy_real": 1.0}] * LONG, 1)


def test_the_journal_tells_what_was_undone(sane: Settings, tmp_path: Path):
    outcome = train(changed(sane, learn__lr=0.3), tmp_path / "r", Quiet())
    names = [event["event"] for event in outcome.run.journal.every() if event.get("round") == 1]
    before = ["discarded probe", "discarded fakes", "discarded coarse"]
    assert names[:3] == before and set(names[3:-1]) == {"discarded update"} and names[-1] == "guard"


def test_what_was_undone_is_said_with_the_command_that_goes_on(command: Command, swatches: Path):
    words = ["train", TOY, "--data", str(swatches), "--set", "learn.lr=0.3", "--rounds", "1"]
    ended = command(*words)
    assert ended.code == 0 and not ended.err
    end = " ".join(ended.out.partition("No round was finished, so there is no LoRA.")[2].split())
    assert "A guard stopped the run: " in end and "rolled back to the start." in end
    assert "LoRA" not in end and "sheet" not in end
    assert end.endswith(f"go on spinlite {shlex.join(words)} --lr 0.1")
    assert not list(Path("runs/toy").glob("export/*"))
    again = command(*words, "--set", "learn.lr=0.01")
    assert again.code == 0 and "round 1 of 1" in again.out and "stopped" not in again.out
