"""spinlite bench: what it meters is what is there, what it compares computes the same, and what it prints is complete."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spinlite.bench import card
from spinlite.bench import data as bench_data
from spinlite.bench.diffusers_way import DiffusersWay
from spinlite.bench.meter import Live, measure_peak
from spinlite.bench.profile import kind_of
from spinlite.bench.run import Figures, bench
from spinlite.bench.screen import as_json, paste, verdicts
from spinlite.bench.turns import ATTENTION, Call, Row, measure_in_turns, ratio, together
from spinlite.bench.ways import (
    DESCRIPTIONS,
    DIFFUSERS,
    DPO_WAY,
    FAST,
    LIVE,
    ONE_GRAPH,
    OPPONENT_FIRST,
    SFT_WAY,
    TWO_NETWORKS,
    Ways,
    states,
    two_network_step,
    weights,
)
from spinlite.cli.app import main
from spinlite.config.load import load_settings
from spinlite.config.settings import Memory, Model
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import gaussian
from spinlite.memory.device import choose_device
from spinlite.methods.spin import SPIN
from spinlite.training.batches import Batch
from spinlite.training.step import step
from tests.toy import TOY

CPU = torch.device("cpu")
MB = 4 * 2**20  # of 1024 x 1024 floats


# The meter


def test_the_meter_counts_what_a_graph_keeps_and_lets_go_of_what_is_dropped():
    layers = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(10))).requires_grad_(False)
    x = torch.randn(1024, 1024, requires_grad=True)
    with Live(layers.parameters()) as live:
        assert live.now == 10 * MB
        y = x
        for layer in layers:
            y = torch.tanh(layer(y))  # keeps its own output, not what it is made of
        assert live.now == 21 * MB and live.peak == 22 * MB
        y.sum().backward()
        assert x.grad is not None
        del y
        assert live.now == 12 * MB  # the weights, x and its slope


def test_a_view_or_a_change_in_place_takes_no_memory():
    with Live() as live:
        x = torch.zeros(1024, 1024)
        x.view(-1)[:10].add_(1)
        x += 1
        assert live.now == live.peak == MB
        with torch.no_grad():
            torch.cat([x, x])
        assert live.now == MB and live.peak == 3 * MB


def test_every_block_is_metered_from_its_own_start():
    held = [torch.zeros(1024, 1024)]
    peaks = []
    for size in (3, 1):
        with measure_peak(CPU, held) as peak:
            torch.zeros(size, 1024, 1024)
        peaks.append(peak.bytes)
    assert peaks == [4 * MB, 2 * MB]


def test_a_cpus_attention_is_counted_as_work():
    q = torch.randn(1, 4, 64, 32, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        out = nn.functional.scaled_dot_product_attention(q, q, q)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * (2 * 4 * 64 * 64 * 32)  # two products of (64, 32) by (32, 64) in each of 4 heads
    assert counter.get_total_flops() == forward + 5 * forward // 2


# Turns


def test_calls_take_turns_and_one_that_does_not_fit_has_no_figures():
    heard: list[str] = []

    def too_large() -> None:
        heard.append("too large")
        raise torch.OutOfMemoryError

    calls = [Call("a", "pair", 4, lambda: heard.append("a")), Call("b", "pair", 2, too_large),
             Call("c", "pair", 2, lambda: heard.append("c"), scale=3)]  # fmt: skip
    told: list[None] = []
    rows = measure_in_turns(calls, 3, CPU, tuple, lambda: told.append(None))
    assert heard == ["a", "too large", "c", *["a", "c"] * 4] and len(told) == 15
    assert [len(row.times) for row in rows] == [3, 0, 3] and rows[1] == Row("b", "pair", 2)
    assert rows[2].seconds == sorted(rows[2].times)[1]


def test_a_ratio_is_of_what_stood_side_by_side():
    """A computer that is ten times slower in one turn does not change it."""
    slow, fast = Row("a", "pair", 1, 2.0, 30, 6.0, [2.0, 20.0, 2.2]), Row("b", "image", 1, 1.0, 20, 2.0, [1.0, 10.0, 1.0])
    assert ratio(slow, fast) == (2.0, 1.5, 3.0) and ratio(slow, Row("b", "image", 1)) is None
    both = together("c", slow, fast)
    assert both.times == [3.0, 30.0, 3.2] and both.peak == 30 and both.work == 8.0 and both.seconds == 3.2


# The ways


@pytest.fixture(scope="module")
def learner() -> tuple[Family, Slots, Batch, nn.Module]:
    """The demo's model with a small LoRA that has learned something, pairs, and its network without LoRA."""
    model = load_family(Model(base="demo"), choose_device(Memory(precision="fp32")))
    opponent = copy.deepcopy(model.net)
    slots = Slots(model.net, model.lora_targets["linear"], 4, 4, seed=0)
    with torch.no_grad():
        for i, p in enumerate(slots.parameters()):
            p.add_(gaussian(tuple(p.shape), "bench", i).to(p.device), alpha=2e-3)  # enough for a loss well away from log 2
    real, fake, eps = (gaussian((2, *model.latent_shape), "test", name) for name in ("real", "fake", "eps"))
    batch = Batch(real, fake, eps, model.path.times(torch.tensor([0.3, 0.7])), model.encode_captions(["a cat", "a dog"]))
    return model, slots, batch, opponent


def gradient(slots: Slots, call: Any) -> list[torch.Tensor]:
    for p in slots.parameters():
        p.grad = None
    call()
    return [p.grad.clone() for p in slots.parameters() if p.grad is not None]


def test_two_networks_are_a_fair_yardstick_since_they_compute_the_same(learner: tuple[Family, Slots, Batch, nn.Module]):
    """A second network as the opponent, real and fake at once: the same loss and gradient as spinlite's step."""
    model, slots, batch, opponent = learner
    other = copy.copy(model)
    other.net = opponent
    losses: list[torch.Tensor] = []
    plain = gradient(slots, lambda: losses.append(two_network_step(model, other, SPIN(), batch)))
    ours = gradient(slots, lambda: losses.append(step(model, slots, SPIN(), batch, one_graph=True)[0]))
    assert len(plain) == len(ours) == len(slots.parameters())
    assert abs(losses[0].item() - losses[1].item()) < 1e-3 and abs(losses[0].item() - math.log(2)) > 1e-2
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_one_graph_takes_the_memory_of_plain_training_and_two_networks_take_more(
    learner: tuple[Family, Slots, Batch, nn.Module],
):
    model, slots, batch, opponent = learner
    optimizer = torch.optim.AdamW(slots.parameters(), lr=0.0)
    peer = DiffusersWay(model, copy.deepcopy(opponent), slots.modules, 4, model._device, "adamw")  # pyright: ignore
    ways = Ways(model, slots, optimizer, batch, opponent, peer)
    rows = {row.name: row for row in measure_in_turns(ways.calls(), 1, CPU, lambda: weights(model.net), lambda: None)}
    against = {name: ratio(row, rows[SFT_WAY]) for name, row in rows.items()}
    assert list(rows) == [SFT_WAY, ONE_GRAPH, FAST, OPPONENT_FIRST, LIVE, DPO_WAY, TWO_NETWORKS, DIFFUSERS]
    peaks, work = ({name: found[i] for name, found in against.items() if found} for i in (1, 2))
    assert peaks[ONE_GRAPH] < 1.05 and peaks[LIVE] < 1.05 and peaks[OPPONENT_FIRST] < 1
    assert 1.3 < peaks[FAST] < 2 and peaks[TWO_NETWORKS] > peaks[FAST]
    assert work[SFT_WAY] == 1 and work[FAST] == pytest.approx(2, abs=0.02) and 2.3 < work[ONE_GRAPH] < 2.6
    assert work[LIVE] == pytest.approx(work[ONE_GRAPH] + work[OPPONENT_FIRST], abs=0.02)
    assert work[DPO_WAY] == pytest.approx(work[DIFFUSERS], rel=0.02)
    assert len(states(optimizer)) >= 2 * len(slots.parameters())
    assert next(opponent.parameters()).device == CPU


def test_diffusers_script_computes_the_gain_that_dpo_does(learner: tuple[Family, Slots, Batch, nn.Module]):
    model, _, batch, opponent = learner
    peer = DiffusersWay(model, copy.deepcopy(opponent), ["to_q"], 2, model._device, "adamw")  # pyright: ignore
    assert peer.loss(batch).item() == pytest.approx(math.log(2), abs=1e-5), "its B is zero"
    layers = sum(name.endswith("to_q") for name, _ in opponent.named_modules())
    assert peer.update(batch).isfinite() and sum(p.requires_grad for p in peer.net.parameters()) == 2 * layers


# The command


@pytest.fixture(scope="module")
def figures() -> Figures:
    heard: list[tuple[int, int]] = []
    settings = load_settings("demo", ["learn.batch=2", "play.steps=6"])
    found = bench(settings, 1, 60, lambda done, of: heard.append((done, of)), profiled=True)
    assert heard[-1][0] == heard[-1][1] == 42 and [done for done, _ in heard] == list(range(1, 43))
    return found


def test_every_phase_and_way_has_its_figures(figures: Figures):
    assert [row.name for row in figures.phases] == ["encode", "captions", "play", "learn", "judge", "sheet"]
    for row in figures.phases + figures.ways:
        assert row.seconds and row.seconds > 0 and row.peak and row.peak > 2**20 and row.work and row.work > 0, row
    assert figures.size == figures.real_size == (64, 64) and figures.batch == 2 and figures.limit is None
    play, learn, ahead = figures.phases[2], figures.phases[3], figures.ways[3]
    assert play.unit == "fake" and learn.unit == "pair" and ahead.name == OPPONENT_FIRST
    six_steps = 6 * (ahead.work or 0) / 2  # it measures real and fake
    assert play.work == pytest.approx(six_steps)


def test_the_figures_are_there_for_programs_and_to_paste(figures: Figures):
    tree = json.loads(as_json("demo", figures))
    assert tree["preset"] == "demo" and tree["versions"]["torch"] == torch.__version__
    assert {way["name"] for way in tree["ways"]} == set(DESCRIPTIONS)
    assert all(set(way["to_sft"]) == {"time", "peak", "work"} for way in tree["ways"])
    assert tree["to_plain"][ONE_GRAPH]["peak"] < 1
    line = paste("demo", figures)
    assert "\n" not in line and "torch " in line and "64x64 px" in line and line.count("MiB (planned ") == 6
    plain, said = verdicts(figures), verdicts(figures, promises=True)
    assert len(plain) == len(said) == 8 and not any("promise" in words for words in plain)
    assert all(words.startswith(figure) for words, figure in zip(said, plain, strict=True))
    assert all("promise: " in words for words in said[:3])
    assert said[2].startswith("planned peaks: ") and said[2].endswith("promise: within 8%: kept")
    assert all(row["planned"] for row in tree["phases"]) and not tree["ways"][-1]["planned"]


def test_what_does_not_fit_into_the_time_is_made_smaller_and_said():
    found = bench(load_settings("demo", ["learn.batch=4"]), 1, 0.001, lambda done, of: None)
    assert found.samples == 1 and found.size == (32, 32) and found.real_size == (64, 64)
    assert [text.partition(", to save")[0] for text in found.left_out] == [
        "the preset's 4 samples per step: here 1", "the preset's pictures of 64x64 px: here 32x32",
    ]  # fmt: skip


def test_the_command_shows_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """On the toy family: points in the plane have no size, and a flow path."""
    monkeypatch.chdir(tmp_path)
    toy = TOY
    monkeypatch.setattr("sys.argv", ["spinlite", "bench", toy, "--steps", "1", "--set", "method.name=sft"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and not err
    for words in ("toy (points in the plane)", "samples/s", "SPIN, saves memory", "SPIN, two networks", "paste"):
        assert words in out, words
    assert ["learn", "image"] in [line.split()[:2] for line in out.splitlines()]
    assert not list(tmp_path.iterdir())


def test_the_benchmark_of_data_says_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, value in (
        ("ITEMS", 32), ("DECODED", 3), ("PICTURES", 2), ("SMALL", 16), ("TURNS", 1), ("consumed", lambda preset: 10.0)
    ):  # fmt: skip
        monkeypatch.setattr(f"spinlite.bench.data.{name}", value)
    assert bench_data.main(["--pictures", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 12 and all(figure > 0 for figure in found.values())
    read, learned = found["read from the store, latents with captions/s"], found["learned from by sd15-24gb, latents/s (plan)"]
    assert found["read, against learned from"] == read / learned


def test_the_page_about_a_card_is_complete_and_one_failure_does_not_end_it(
    figures: Figures, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert card.main(["demo", "sdxl-99gb", "--minutes", "-1"]) == 1
    assert capsys.readouterr().out.count("not measured, the time was over") == 2
    monkeypatch.setattr(card, "bench", lambda *_: figures)  # it takes long, and was measured above
    assert card.main(["demo", "sdxl-99gb", "--set", "learn.batch=2"]) == 1
    out = capsys.readouterr().out
    for words in (
        "| demo |", "- sdxl-99gb: ", "a round in all", "SPIN, saves memory", "| matrix products |", "| launches |",
        "A forward pass, the base's = 1: base 1.00, opponent", "planned peaks: ", "With memory.compile, ",
    ):  # fmt: skip
        assert words in out, words


def test_an_update_s_profile_has_every_kind_of_operation(figures: Figures):
    assert [found.name for found in figures.profiles.updates] == [SFT_WAY, DPO_WAY, FAST]
    for found in figures.profiles.updates:
        assert sum(found.shares.values()) == pytest.approx(1) and found.launches > 500
        assert all(found.shares[kind] > 0 for kind in ("attention", "convolutions", "norms", "matrix products"))
    assert kind_of("aten::convolution_backward") == "convolutions" and kind_of("aten::addmm") == "matrix products"
