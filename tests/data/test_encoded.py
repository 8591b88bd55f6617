"""Encoding: what is kept, under which name, what is made again, and what happens to pictures that can't be encoded."""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spinlite.config.settings import Data, Memory, Model, Settings
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.families.toy import Toy
from spinlite.memory import device
from spinlite.runs import store as stores
from spinlite.runs.files import fingerprint_files
from spinlite.runs.store import Store
from spinlite.selfplay import train
from tests.toy import Quiet

NOTHING: Any = lambda *_: None  # noqa: E731


@pytest.fixture
def toy_model() -> Toy:
    made = load_family(Model(base="0", family="toy"), device.choose_device(Memory()))
    assert isinstance(made, Toy)
    return made


def found_in(folder: Path) -> list[Record]:
    found = survey(Data(folder=str(folder)))
    return sorted(found.train + found.heldout, key=lambda r: r.path)


def contents(cache: Path) -> dict[str, Any]:
    """Every item of every store beneath a folder."""
    found = {}
    for place in sorted({path.parent for path in cache.rglob("*.safetensors")}):
        store = Store(place)
        for key in sorted(store._places):
            found[f"{place.relative_to(cache)}/{key}"] = {name: value.tolist() for name, value in store.get([key]).items()}
    return found


def test_a_picture_is_encoded_once_whatever_its_captions_and_a_caption_once_whatever_its_pictures(
    toy_model: Toy, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records, seen = found_in(swatches), {"encode_pictures": 0, "encode_captions": 0}
    for name, whole in (("encode_pictures", toy_model.encode_pictures), ("encode_captions", toy_model.encode_captions)):

        def counted(some: Any, *others: Any, name: str = name, whole: Any = whole) -> Any:
            seen[name] += len(some)
            return whole(some, *others)

        monkeypatch.setattr(toy_model, name, counted)
    twice = [*records, Record(records[0].path, "another caption", records[0].key)]
    Encoded(toy_model, twice, tmp_path, 7, NOTHING)
    assert seen == {"encode_pictures": 40, "encode_captions": len({r.caption for r in twice} | {""})}
    told = []
    Encoded(toy_model, twice, tmp_path, 7, lambda *done: told.append(done))
    assert seen["encode_pictures"] == 40 and not told


def test_an_edited_picture_is_encoded_again_and_only_that_one(
    toy_model: Toy, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Encoded(toy_model, found_in(swatches), tmp_path, 8, NOTHING)
    before = contents(tmp_path)
    Image.new("RGB", (16, 16), "white").save(swatches / "p3.png")
    seen = []
    whole = toy_model.encode_pictures
    monkeypatch.setattr(toy_model, "encode_pictures", lambda some, *others: (seen.extend(some), whole(some, *others))[1])
    again = found_in(swatches)
    encoded = Encoded(toy_model, again, tmp_path, 8, NOTHING)
    assert len(seen) == 1 and encoded.real([again[[r.path.name for r in again].index("p3.png")]]).tolist() == [[1.0, 1.0]]
    assert before.items() <= contents(tmp_path).items()


def test_a_picture_edited_after_it_was_looked_at_is_not_kept_as_what_it_was(toy_model: Toy, swatches: Path, tmp_path: Path):
    records = found_in(swatches)
    Image.new("RGB", (16, 16), "white").save(swatches / "p3.png")
    encoded = Encoded(toy_model, records, tmp_path, 8, NOTHING)
    assert encoded.changed == ["p3.png"] and not encoded.faults
    assert [r.path.name for r in records if r not in encoded.usable(records)] == ["p3.png"]


def test_a_run_looks_again_at_what_was_edited_while_it_encoded(
    toy: Settings, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, watch = Toy.encode_pictures, Quiet()

    def edits(made: Toy, some: Any, *others: Any) -> Any:
        if not (swatches / "edited").exists():
            (swatches / "edited").write_text("")
            Image.new("RGB", (16, 16), "white").save(swatches / "p39.png")
            Image.new("RGB", (16, 16), "black").save(swatches / "p9.png")
        return whole(made, some, *others)

    monkeypatch.setattr(Toy, "encode_pictures", edits)
    monkeypatch.setattr("spinlite.data.looks.WORKERS", 1)
    outcome = train(toy, tmp_path / "runs" / "a", watch)
    assert any("changed meanwhile and are read again" in text for text in watch.said)
    kept = contents(tmp_path / "runs" / "cache" / "real")
    for name in ("p39.png", "p9.png"):
        key = fingerprint_files([swatches / name])
        expected = [[1.0, 1.0]] if name == "p39.png" else [[-1.0, -1.0]]
        assert [value["x0"] for full, value in kept.items() if key in full] == [expected]
    begun = len(outcome.run.events("update"))
    assert train(toy, tmp_path / "runs" / "a", watch).already and len(outcome.run.events("update")) == begun


def test_pictures_that_cant_be_encoded_are_named_and_the_rest_goes_on(
    toy_model: Toy, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records, whole = found_in(swatches), toy_model.encode_pictures
    damaged = (swatches / "p3.png").read_bytes()[:60]
    (swatches / "p3.png").write_bytes(damaged)
    (swatches / "p4.png").unlink()
    index = next(i for i, r in enumerate(records) if r.path.name == "p3.png")
    records[index] = Record(records[index].path, "three", fingerprint_files([swatches / "p3.png"]))

    def overflows(some: Any, *others: Any) -> Any:
        found = whole(some, *others)
        found["x0"][found["x0"][:, 0] > 0.765] = float("nan")
        return found

    monkeypatch.setattr(toy_model, "encode_pictures", overflows)
    encoded = Encoded(toy_model, records, tmp_path, 8, NOTHING, Data(max_unusable=0.3))
    why = {text.partition(":")[0]: text.partition(": ")[2] for text in encoded.faults.values()}
    assert set(why) == {"p3.png", "p4.png", "p0.png", "p1.png"} | {"p39.png"}
    assert "there is no such file" in why["p4.png"] and "NaN" in why["p0.png"] and "set model.vae" in why["p0.png"]
    assert len(encoded.usable(records)) == 35
    assert torch.isfinite(encoded.real(encoded.usable(records))).all()
    with pytest.raises(SpinliteError, match=r"of 40 pictures can't be encoded: p(.|\n)*data.max_unusable"):
        Encoded(toy_model, records, tmp_path / "b", 8, NOTHING, Data(max_unusable=0.05))
    assert contents(tmp_path / "b"), "what was encoded by then is kept"


def test_other_processing_and_other_encoders_have_stores_of_their_own(toy_model: Toy, swatches: Path, tmp_path: Path):
    records = found_in(swatches)
    kinds: list[dict[str, Any]] = [{}, {"background": "black"}, {"crop": "random"}, {"latents": "sample"}]
    for kind in kinds:
        Encoded(toy_model, records, tmp_path, 8, NOTHING, Data(**kind))
    toy_model.picture_hash = "another VAE"
    Encoded(toy_model, records, tmp_path, 8, NOTHING)
    assert len(list((tmp_path / "real").iterdir())) == 5 and len(list((tmp_path / "prompt").iterdir())) == 1
    toy_model.caption_hash = "another text encoder"
    Encoded(toy_model, records, tmp_path, 8, NOTHING)
    assert len(list((tmp_path / "real").iterdir())) == 5 and len(list((tmp_path / "prompt").iterdir())) == 2


def killed(call: Callable[[], object], at: int) -> bool:
    """Run a call in a process of its own that is killed outright at its n-th step into any function; whether it was."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        steps = 0

        def step(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(step)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="21 processes are only fast where they need not start from nothing")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_encoding_that_is_killed_20_times_ends_with_the_same_store(
    toy_model: Toy, swatches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At random steps; each time the next process goes on. 40 pictures and their mirror images, two in a shard."""
    monkeypatch.setattr(stores, "SAVE_SECONDS", 0.0)
    records, chance = found_in(swatches), random.Random(0)
    encode = lambda name: Encoded(toy_model, records, tmp_path / name, 2, NOTHING, Data(flip=True))  # noqa: E731
    encode("whole")
    whole, kept, cut = contents(tmp_path / "whole"), [], []
    assert len(whole) == 80 + len({r.caption for r in records} | {""})
    for attempt in range(21):
        cut.append(killed(lambda: encode("cut"), chance.randrange(1, 20_000) if attempt < 20 else 0))
        kept.append(len(contents(tmp_path / "cut")))
    assert not cut[-1] and sum(cut) >= 10, list(zip(cut, kept, strict=True))
    assert len({count for count in kept if 0 < count < len(whole)}) >= 5
    assert contents(tmp_path / "cut") == whole
