"""Weights and ranges of times, separate noise, and fakes met on their own paths: what they change of a step, and no more."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spinlite.config.load import load_settings
from spinlite.config.settings import Draw, Settings
from spinlite.errors import SpinliteError
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from spinlite.training import probe as probe_module
from spinlite.training.batches import PathPoints
from spinlite.training.step import measure, step
from tests.toy import TOY, Quiet, changed
from tests.training.test_step import batch, exact, gradient, toy  # noqa: F401

EXACT = {"play__points": 3, "play__steps": 4, "method__anchor": 0.0}


def walked(n: int = 8) -> PathPoints:
    torch.manual_seed(11)
    x_t, own = (torch.randn(n, 2, dtype=torch.float64) for _ in range(2))
    return PathPoints(x_t, torch.rand(n, dtype=torch.float64), own)


@pytest.mark.parametrize("one_graph", [False, True])
def test_a_weight_multiplies_each_samples_errors_before_the_method(one_graph: bool, toy, exact):  # noqa: F811
    family, slots = toy
    weight = torch.linspace(0, 3, 8, dtype=torch.float64)
    b = batch()
    (weight * measure(family, slots, "policy_real", b)).mean().backward()
    plain = gradient(slots)
    loss, errors = step(family, slots, SFT(), replace(b, weight=weight), one_graph, 3)
    assert_close(gradient(slots), plain)
    assert_close(errors["policy_real"], measure(family, slots, "policy_real", b).detach())  # journalled as it is
    assert_close(loss, (weight * errors["policy_real"]).mean())


def test_separate_noise_is_the_fakes_alone(toy, exact):  # noqa: F811
    family, slots = toy
    b = batch()
    other = replace(b, eps_fake=torch.randn(8, 2, dtype=torch.float64))
    assert torch.equal(measure(family, slots, "policy_real", b), measure(family, slots, "policy_real", other))
    assert not torch.equal(measure(family, slots, "policy_fake", b), measure(family, slots, "policy_fake", other))
    assert torch.equal(measure(family, slots, "opponent_fake", replace(b, eps_fake=b.eps)),
                       measure(family, slots, "opponent_fake", b))  # fmt: skip


@pytest.mark.parametrize("one_graph", [False, True])
@pytest.mark.parametrize("ahead", [False, True], ids=["live", "ahead"])
def test_on_its_own_path_a_fakes_gain_is_the_squared_distance_from_what_the_opponent_said(
    one_graph: bool,
    ahead: bool,
    toy,  # noqa: F811
    exact,  # noqa: F811
):
    """The margin by hand, its gradient by autograd; the opponent is asked about the real ones alone."""
    family, slots = toy
    method, w = SPIN(beta=3.0, bound=1e9, anchor=0.05), walked()
    b = replace(batch(), path_points=w)
    said = family.denoise(w.x_t, w.t, b.cond)
    distance = (said - w.own).square().mean(1)
    gain_real = measure(family, slots, "opponent_real", b).detach() - measure(family, slots, "policy_real", b)
    expected = (torch.nn.functional.softplus(-3 * (gain_real + distance)) - 0.05 * 3 * gain_real).mean()
    expected.backward()
    plain = gradient(slots)
    if ahead:
        b = replace(b, known={"opponent_real": measure(family, slots, "opponent_real", b).detach()})
    loss, errors = step(family, slots, method, b, one_graph, 3)
    assert_close(loss, expected.detach())
    assert_close(gradient(slots), plain)
    assert torch.equal(errors["opponent_fake"], errors["opponent_real"])
    assert_close(errors["policy_fake"] - errors["opponent_fake"], distance.detach())


def test_the_exact_objective_runs_resumes_and_learns(toy_settings: Settings, tmp_path: Path):
    settings = changed(toy_settings, **EXACT)
    outcome = train(settings, tmp_path / "a" / "r", Quiet())
    probes = outcome.run.events("probe")
    assert [p["loss"] for p in probes if "loss" in p] == pytest.approx([0.6931] * 2, abs=1e-4)
    assert all(p["apart"] < 1e-6 for p in probes if "apart" in p) and len(probes) == 4
    updates = outcome.run.events("update")
    assert all(u["policy_fake"] >= u["opponent_fake"] == u["opponent_real"] for u in updates)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "b" / "r", Quiet(lambda title, done: "round 2/2 · learn" in title and done == 13))
    train(settings, tmp_path / "b" / "r", Quiet())
    for k in (1, 2):
        first, second = (read_tensors(tmp_path / name / "r" / "snapshots" / f"{k}.safetensors")[0] for name in "ab")
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("cached", [False, True])
def test_opponents_measured_ahead_change_nothing_on_paths_either(cached: bool, toy_settings: Settings, tmp_path: Path):
    settings = changed(toy_settings, **EXACT, memory__cache_opponent=cached, learn__updates=6, run__rounds=1)
    other = changed(settings, memory__cache_opponent=not cached)
    losses = [
        [event["loss"] for event in train(each, tmp_path / str(i) / "r", Quiet()).run.events("update")]
        for i, each in enumerate((settings, other))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_predictions_of_another_network_are_refused(toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = probe_module.make_batch

    def other(*args, **options):
        made = whole(*args, **options)
        assert made.path_points is not None
        return replace(made, path_points=replace(made.path_points, own=made.path_points.own + 0.5))

    monkeypatch.setattr(probe_module, "make_batch", other)
    with pytest.raises(SpinliteError, match="no longer predicts what it did while it played"):
        train(changed(toy_settings, **EXACT), tmp_path / "r", Quiet())


@pytest.mark.parametrize("method", ["spin", "sft"])
def test_times_keep_to_their_range(method: str, toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []
    whole = learn_module.Batches.for_update

    def spied(self, update: int):
        (batch,) = made = whole(self, update)
        seen.extend(batch.t.tolist())
        return made

    monkeypatch.setattr(learn_module.Batches, "for_update", spied)
    settings = changed(toy_settings, method__name=method, draw__low=0.25, draw__high=0.75, draw__weight="min-snr",
                       draw__noise="separate", run__rounds=1)  # fmt: skip
    train(settings, tmp_path / "r", Quiet())
    assert 0.25 <= min(seen) < 0.3 and 0.7 < max(seen) < 0.75


def test_points_outside_the_range_count_nothing(toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[float, float]] = []
    whole = learn_module.Batches.for_update

    def spied(self, update: int):
        (batch,) = made = whole(self, update)
        assert batch.weight is not None
        seen.extend(zip(batch.t.tolist(), batch.weight.tolist(), strict=True))
        return made

    monkeypatch.setattr(learn_module.Batches, "for_update", spied)
    train(changed(toy_settings, **EXACT, draw__low=0.6, run__rounds=1), tmp_path / "r", Quiet())
    assert {weight for t, weight in seen if t >= 0.6} == {1.0} and {weight for t, weight in seen if t < 0.6} == {0.0}


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match="above low"):
        Draw(low=0.5, high=0.4)


@pytest.fixture
def toy_settings(swatches: Path) -> Settings:
    return load_settings(TOY, data__folder=str(swatches))
