"""Memory that runs out, injected into every phase of a real small run: it ends, says what it gave up, and learns the same."""

import contextlib
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from spinlite import selfplay
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.families.toy import Toy
from spinlite.memory.device import Device, Levers
from spinlite.memory.oom import Fallback, out_of_memory
from spinlite.memory.spill import SpillWatch, spilled
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training import step as step_module
from tests.toy import Quiet, changed

CPU = torch.device("cpu")
LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    OSError("The paging file is too small for this operation to complete. (os error 1455)"),
]


@pytest.mark.parametrize("error", LACKS, ids=str)
def test_a_lack_of_memory_is_known_in_every_form(error: Exception):
    assert out_of_memory(error)


OTHERS = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("No such file"), ValueError("out of memory")]


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception):
    assert not out_of_memory(error)
    with pytest.raises(type(error)):
        Fallback(Device(CPU, "a test"), True, [], print).run("learn", 4, lambda levers: _raise(error))


def _raise(error: BaseException) -> Any:
    raise error


def descent(phase: Any, levers: Levers, size: int, pairs: bool = True) -> tuple[list[Any], list[str], SpinliteError]:
    """What is tried, what is said, and the end, where memory never suffices."""
    tried, said = [], []

    def attempt(now: Levers) -> None:
        tried.append((now.one_graph, now.checkpointing, now.micro_batch) if phase == "learn" else (now.play_batch,))
        raise MemoryError

    with pytest.raises(SpinliteError) as caught:
        Fallback(Device(CPU, "a test", levers), pairs, [], said.append).run(phase, size, attempt)
    return tried, said, caught.value


def test_learning_gives_up_speed_step_by_step():
    tried, said, end = descent("learn", Levers(), 5)
    assert tried == [(False, False, None), (True, False, None), *[(True, True, size) for size in (None, 3, 2, 1)]]
    begin = "out of memory while learning: continuing with"
    assert said[0] == f"{begin} one activation graph at a time (memory.one_graph was false)"
    assert said[2] == f"{begin} 3 samples per batch (memory.micro_batch was the whole batch)"
    assert "1 sample per batch" in end.problem and "memory.quantize" in end.fix


def test_a_method_of_one_error_has_one_graph_anyway():
    tried, _, _ = descent("learn", Levers(), 2, pairs=False)
    assert tried == [(False, False, None), (False, True, None), (False, True, 1)]


def test_the_other_phases_halve_their_batch_and_no_other_phases():
    tried, _, _ = descent("play", Levers(play_batch=64), 10)
    assert tried == [(64,), (5,), (3,), (2,), (1,)]
    kept: list[dict[str, Any]] = []
    falling = Fallback(Device(CPU, "a test", Levers(play_batch=8)), True, kept, print)
    falling.run("encode", 100, lambda levers: levers.play_batch <= 2 or _raise(MemoryError()))
    assert [falling.levers(phase).play_batch for phase in ("encode", "play", "judge")] == [2, 8, 8]
    again = Fallback(Device(CPU, "a test", Levers(play_batch=1)), True, json.loads(json.dumps(kept)), print)
    assert again.levers("encode").play_batch == 1, "what is cheaper by itself stays so"


def test_what_a_failed_attempt_held_is_gone_before_the_next():
    held: list[weakref.ref[torch.Tensor]] = []

    def attempt(levers: Levers) -> int:
        assert all(ref() is None for ref in held)
        tensor = torch.zeros(9)
        tensor.cycle = tensor  # pyright: ignore[reportAttributeAccessIssue]
        held.append(weakref.ref(tensor))
        return levers.micro_batch == 1 or _raise(MemoryError())

    gc.disable()
    try:
        assert Fallback(Device(CPU, "a test"), True, [], print).run("learn", 2, attempt)
    finally:
        gc.enable()


class Limited(Quiet):
    """A watch under which the toy family has room for a few samples at once in one phase, and raises where there are more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: str, most: int, error: Exception) -> None:
        super().__init__()
        self.raised, self.now = 0, ""
        denoise, encode = Toy.denoise, Toy.encode_pictures

        def tight(count: int) -> None:
            if self.now.endswith(end) and count > most:
                self.raised += 1
                raise error

        def limited_denoise(toy: Any, x_t: Any, t: Any, cond: Any) -> Any:
            prediction = denoise(toy, x_t, t, cond)
            tight(len(x_t) // 2 if end == "play" else len(x_t))  # both halves of guidance are one batch
            return prediction

        monkeypatch.setattr(Toy, "denoise", limited_denoise)
        monkeypatch.setattr(Toy, "encode_pictures", lambda toy, some, *sampled: tight(len(some)) or encode(toy, some, *sampled))

    @contextlib.contextmanager
    def phase(self, title: str, total: int):
        with super().phase(title, total) as progress:
            self.now = title
            try:
                yield progress
            finally:
                self.now = ""


PHASES = [
    ("encode", "encode pictures and captions", ["play_batch", "play_batch", "play_batch"], [8, 4, 2]),
    ("play", "play", ["play_batch", "play_batch", "play_batch"], [8, 4, 2]),
    ("opponent", "opponent", ["play_batch", "play_batch", "play_batch"], [8, 4, 2]),
    ("learn", "learn", ["one_graph", "checkpointing", "micro_batch", "micro_batch"], [True, True, 4, 2]),
    ("judge", "judge", ["play_batch", "play_batch", "play_batch"], [8, 4, 2]),
]


@pytest.mark.parametrize(("phase", "title", "levers", "to"), PHASES, ids=[phase[0] for phase in PHASES])
def test_a_run_that_runs_out_of_memory_ends_as_the_run_that_does_not(
    phase: str, title: str, levers: list[str], to: list[Any], small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = train(small, tmp_path / "a" / "r", Quiet())
    tight = Limited(monkeypatch, title, 3, LACKS[PHASES.index((phase, title, levers, to))])
    settings = changed(small, memory__cache_opponent=phase == "opponent")
    outcome = train(settings, tmp_path / "b" / "r", tight)
    lowered = outcome.run.events("lowered")
    expected = [(phase, lever, value) for lever, value in zip(levers, to, strict=True)]
    assert [(drop["phase"], drop["lever"], drop["to"]) for drop in lowered] == expected
    assert tight.raised == len(lowered) == sum("out of memory" in line for line in tight.said), "in round 2 it was known"
    for k in (1, 2):
        assert_close(
            read_tensors(outcome.run.snapshot_path(k))[0], read_tensors(whole.run.snapshot_path(k))[0], atol=1e-5, rtol=1e-4
        )
    for mine, theirs in zip(outcome.rounds, whole.rounds, strict=True):
        for name in ("policy_real", "policy_fake", "opponent_fake", "base_real"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    assert outcome.run.export_path.exists()


def test_gradients_of_a_step_that_failed_half_way_are_dropped(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory runs out in the second micro-batch of an update, when the first one's gradients are there already."""
    settings = changed(small, memory__one_graph=True, memory__checkpointing=True, memory__micro_batch=4)
    whole = train(settings, tmp_path / "a" / "r", Quiet())
    measured, parts = step_module.measure_together, []

    def failing(family: Any, slots: Any, names: Any, part: step_module.Batch) -> torch.Tensor:
        if watch.phases[-1:] == ["round 2/2 · learn"]:
            parts.append(any(p.grad is not None for p in slots.parameters()))
            if parts == [False] * 4 + [True] * 3:
                raise LACKS[0]
        return measured(family, slots, names, part)

    watch = Quiet()
    monkeypatch.setattr(step_module, "measure_together", failing)
    outcome = train(settings, tmp_path / "b" / "r", watch)
    assert [drop["to"] for drop in outcome.run.events("lowered")] == [2]
    assert_close(
        read_tensors(outcome.run.snapshot_path(2))[0], read_tensors(whole.run.snapshot_path(2))[0], atol=1e-5, rtol=1e-4
    )


def test_a_run_with_the_opponent_ahead_is_the_run_without(small: Settings, tmp_path: Path):
    whole = train(small, tmp_path / "a" / "r", Quiet())
    watch = Quiet()
    outcome = train(changed(small, memory__cache_opponent=True), tmp_path / "b" / "r", watch)
    assert "round 1/2 · opponent" in watch.phases
    for mine, theirs in zip(outcome.run.events("update"), whole.run.events("update"), strict=True):
        for name in ("opponent_real", "opponent_fake", "policy_real", "policy_fake", "loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert_close(
        read_tensors(outcome.run.snapshot_path(2))[0], read_tensors(whole.run.snapshot_path(2))[0], atol=1e-5, rtol=1e-4
    )
    assert not (outcome.run.folder / "opponent_errors").exists()


def test_a_run_cut_off_after_it_ran_out_of_memory_goes_on_with_the_cheaper_setting(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tight = Limited(monkeypatch, "learn", 3, LACKS[0])
    tight.interrupt = lambda title, done: title.endswith("1/2 · learn") and done == 2
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path / "r", tight)
    assert tight.raised == 4
    tight.interrupt, tight.said = lambda title, done: False, []
    outcome = train(small, tmp_path / "r", tight)
    assert tight.raised == 4 and len(outcome.run.events("lowered")) == 4
    assert "saves memory: one activation graph at a time, checkpointing" in next(
        text for text in tight.said if text.startswith("memory: play 16 samples per batch, learn 2 of 8 samples per step, ")
    )


def test_other_memory_settings_start_from_the_top_again(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tight = Limited(monkeypatch, "learn", 3, LACKS[0])
    tight.interrupt = lambda title, done: title.endswith("2/2 · learn") and done == 2
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path / "r", tight)
    tight.interrupt = lambda title, done: False
    outcome = train(changed(small, memory__one_graph=True), tmp_path / "r", tight)
    assert [d["lever"] for d in outcome.run.events("lowered")][4:] == ["checkpointing", "micro_batch", "micro_batch"]


def test_memory_that_does_not_suffice_for_one_sample_is_an_error_for_people(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SpinliteError, match="out of memory while learning, even with 1 sample per batch"):
        train(small, tmp_path / "r", Limited(monkeypatch, "learn", 0, LACKS[1]))


def test_a_base_that_does_not_fit_is_an_error_for_people(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selfplay, "load_family", lambda *args: _raise(LACKS[0]))
    with pytest.raises(SpinliteError, match="out of memory: CUDA out of memory"):
        train(small, tmp_path / "r", Quiet())


def test_a_sheet_that_does_not_fit_is_left_out(small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Toy, "decode", lambda toy, latents: _raise(LACKS[0]))
    watch = Quiet()
    outcome = train(small, tmp_path / "r", watch)
    assert len(outcome.rounds) == 2 and not outcome.run.sheet_path(1).exists() and outcome.run.export_path.exists()
    begin = "no sample sheet of round 1: out of memory while drawing the sample sheet"
    assert any(said.startswith(begin) for said in watch.said)


def test_a_spill_is_what_exceeds_the_card_or_what_was_free():
    gb = 2**30
    assert spilled((5 * gb, 8 * gb, 2 * gb), (0, 8 * gb, 7 * gb)) == 0
    assert spilled((5 * gb, 8 * gb, 2 * gb), (0, 8 * gb, 8 * gb)) == 1 * gb
    assert spilled((1 * gb, 8 * gb, 2 * gb), (0, 8 * gb, 4 * gb)) == 1 * gb, "other programs hold the rest"
    assert spilled((0, 8 * gb, 9 * gb), (0, 8 * gb, 9 * gb)) == 1 * gb, "it was so before the phase"


def test_a_spill_is_told_once_a_phase():
    watch, gb = Quiet(), 2**30
    room = iter([(5 * gb, 8 * gb, 2 * gb), (1 * gb, 8 * gb, 6 * gb), *[(0, 8 * gb, int(8.5 * gb))] * 2])
    with SpillWatch(watch, lambda: next(room)).phase("round 1/3 · play", 3) as progress:
        for done in range(1, 3):
            progress(done, 3)
        assert len(watch.said) == 1 and watch.said[0].startswith("round 1/3 · play: 1.5 GB have spilled")
        progress(3, 3)
    assert len(watch.said) == 1
