"""Several processes learn what one learns, each on its share; if one is lost the others stop, and the run goes on as before."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from spinlite.config.load import load_settings
from spinlite.methods.registry import METHODS
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from tests.several import Job, together
from tests.toy import TOY, Quiet

COMMON = ["learn.updates=2", "learn.optimizer=adamw", "judge.stop=false", "learn.caption_dropout=0.5"]
METHODS_ALONE = {name: [f"method.name={name}", "run.rounds=1"] for name in METHODS if METHODS[name]().fakes != "given"}
WAYS = {
    "dpo": ["method.name=seppo", "method.reference=base", "method.gate=none"],
    "measured first": ["memory.cache_opponent=true", "memory.one_graph=true", "memory.micro_batch=1"],
    "an opponent each": ["method.name=seppo", "method.reference=each"],
    "on paths": ["play.points=2"],
    "weighed": ["draw.weight=min-snr", "learn.aim=0.2"],
    "fewer pictures than processes": ["learn.batch=2"],
}  # fmt: skip


def snapshots(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: read_tensors(path)[0] for path in sorted((folder / "snapshots").glob("*.safetensors"))}


def journal(folder: Path, event: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [e for e in events if e["event"] == event]
    counts = ("time", "accuracy", "gate_rate")  # a tie counts as one or as none by its last digit
    return [{key: value for key, value in e.items() if isinstance(value, int | float) and key not in counts} for e in found]


def test_processes_learn_what_one_learns_and_go_on_when_one_was_lost(swatches: Path, tmp_path: Path):
    """Two, the second of which is killed in the last run; then three, which first finish what the two began."""

    def job(name: str, words: list[str], kill: tuple[int, int] = (-1, -1)) -> Job:
        return Job(tmp_path / name / "runs" / "r", swatches, [*COMMON, *words], kill)

    long = ["learn.updates=12", "method.beta=5.0"]  # a beta that does not make much of rounding
    two, three = ([job(name, words) for name, words in cases.items()] for cases in (METHODS_ALONE, WAYS))
    first, second = together(2, [*two, job("lost", long, kill=(1, 6))], tmp_path / "two")
    assert second.code not in (0, 1) and first.code == 1, (first, second)
    assert "another process of this run has ended" in first.said and "the same command again" in first.said
    lost = job("lost", long)
    assert not (lost.folder / "export").exists() and all((each.folder / "export").exists() for each in two)
    ended = together(3, [lost, *three], tmp_path / "three")
    assert [each.code for each in ended] == [0, 0, 0], ended
    for each in [*two, *three, lost]:
        alone = each.folder.with_name("alone")
        train(load_settings(TOY, each.words, data__folder=str(swatches)), alone, Quiet())
        same(alone, each.folder, str(each.words))


def same(alone: Path, together: Path, what: str) -> None:
    """The same snapshots and figures, as near as another order of sums allows."""
    mine, theirs = snapshots(alone), snapshots(together)
    assert mine.keys() == theirs.keys() >= {"0", "1"}
    for name, state in mine.items():
        for key, tensor in state.items():
            assert_close(theirs[name][key], tensor, rtol=1e-3, atol=1e-5, msg=f"{what}: {key} of {name}")
    for event in ("update", "judge"):
        for a, b in zip(journal(alone, event), journal(together, event), strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4), what
