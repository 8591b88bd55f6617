"""Pictures of several shapes in one run: what is learned of them together is what would be learned of each shape alone."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch.testing import assert_close

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.settings import Data, Learn, Memory, Model, Play
from spinlite.data.buckets import Grid
from spinlite.data.encoded import Encoded
from spinlite.data.groups import group_by_shape
from spinlite.data.pictures import mirror, resize_and_crop
from spinlite.data.records import Record, other_pictures
from spinlite.data.survey import survey
from spinlite.families.family import Family
from spinlite.families.load import load_family, size_and_step
from spinlite.lora.adapters import Slots
from spinlite.maths.draws import permutation
from spinlite.memory import device
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.runs.files import fingerprint_files
from spinlite.runs.store import Store
from spinlite.selfplay import train
from spinlite.training.animation import strip
from spinlite.training.batches import Batches, make_batch
from spinlite.training.decode import decode_latents
from spinlite.training.heldout import heldout_errors
from spinlite.training.opponent_errors import measure_opponent
from spinlite.training.play import fake_key, play
from spinlite.training.session import Session
from spinlite.training.step import measure, step
from tests.toy import Quiet

SIZES = [(96, 96), (160, 96), (96, 160), (100, 99), (320, 200), (64, 64), (90, 50), (300, 100)]
NOTHING: Any = lambda *_: None  # noqa: E731


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures of four shapes for the demo's model, captioned by what they are."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i, size in enumerate(SIZES):
        levels = [v * (i + 2) // 9 for v in range(256)]
        Image.radial_gradient("L").resize(size).point(levels).convert("RGB").save(place / f"p{i}.png")
        (place / f"p{i}.txt").write_text(f"a flower of the kind {i}", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def model() -> tuple[Family, Slots]:
    made = load_family(Model(), device.choose_device(Memory(precision="fp32")))
    slots = Slots(made.net, made.lora_targets["linear"], rank=2, alpha=2.0, seed=1)
    with torch.no_grad():  # away from zero, so that the policy is not its opponent
        for i, parameter in enumerate(slots.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return made, slots


@pytest.fixture
def records(folder: Path) -> list[Record]:
    found = survey(Data(folder=str(folder)), grid=Grid(*size_and_step(Model())))
    return sorted(found.train + found.heldout, key=lambda r: r.path)


def encode(made: Family, records: list[Record], cache: Path, **settings: Any) -> Encoded:
    return Encoded(made, records, cache, 3, NOTHING, Data(**settings))


def gradient(slots: Slots) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in slots.parameters() if p.grad is not None]
    for p in slots.parameters():
        p.grad = None
    return found


def test_pictures_of_one_shape_stand_together_in_order():
    assert group_by_shape("aababcb", 2) == [[0, 1], [3], [2, 4], [6], [5]] and group_by_shape("", 2) == []
    assert group_by_shape("aaaaa", 2) == [[0, 1], [2, 3], [4]]


def placed(shapes: str, batch: int, updates: int) -> Batches:
    """A round of pictures with these shapes, a letter each."""
    records = [Record(Path(f"{i}.png"), "", f"{i}", bucket=(ord(shape), 64)) for i, shape in enumerate(shapes)]
    encoded: Any = type("Encoded", (), {"flip": False})()
    return Batches(None, encoded, records, None, Learn(batch=batch, updates=updates), 3, 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("shapes", "batch"), [("a" * 20 + "b" * 17 + "c" * 13, 6), ("abcab", 4), ("abc", 8)])
def test_updates_have_few_shapes_and_every_epoch_shows_each_picture_once(shapes: str, batch: int):
    count, epochs = len(shapes), 12
    round_ = placed(shapes, batch, epochs * count // batch)
    for epoch in range(epochs):
        shown = [record.key for record, turn in round_.rows(range(epoch * count, (epoch + 1) * count)) if turn == epoch]
        assert sorted(shown) == sorted(map(str, range(count)))
    found = [len(round_.by_shape(range(u * batch, (u + 1) * batch))) for u in range(epochs * count // batch)]
    kinds = len(set(shapes))
    assert sum(found) <= len(found) + epochs * kinds  # an epoch adds a change of shape for each shape, and its own begin
    if count > 2 * batch:
        first = [round_.rows([u * batch])[0][0].bucket for u in range(len(found))]
        assert sum(a == b for a, b in pairwise(first)) < 0.7 * len(first), "shapes take turns"


def test_with_one_shape_the_draws_are_a_random_order_of_all():
    rows = placed("a" * 9, 4, 9).rows(range(18, 27))
    assert [int(record.key) for record, _ in rows] == permutation(9, "learn", 3, 1, 2)


def test_latents_have_the_shapes_of_their_buckets(model: tuple[Family, Slots], records: list[Record], tmp_path: Path):
    encoded = encode(model[0], records, tmp_path)
    shapes = {(64, 64): 3, (80, 48): 3, (48, 80): 1, (96, 32): 1}
    found = [r.bucket for r in records]
    assert {shape: found.count(shape) for shape in shapes} == shapes
    for r in records:
        assert r.bucket is not None
        assert encoded.real([r]).shape == (1, 4, r.bucket[1] // 4, r.bucket[0] // 4)


@pytest.mark.parametrize("method", [SPIN(beta=50.0), SFT()], ids=["spin", "sft"])
def test_an_update_of_several_shapes_has_the_gradient_of_its_samples_one_by_one(
    method: Any, model: tuple[Family, Slots], records: list[Record], tmp_path: Path
):
    made, slots = model
    encoded = encode(made, records, tmp_path)
    fakes = lambda some: encoded.real(some).flip(-1)  # noqa: E731
    batches = Batches(made, encoded, records, fakes, Learn(batch=8, updates=2, caption_dropout=0.5), 0, 1)
    together = batches.for_update(1)
    assert sorted(len(batch.t) for batch in together) == [1, 1, 3, 3]
    for batch in together:
        step(made, slots, method, batch, True, 2, len(batch.t) / 8)
    mixed = gradient(slots)
    for place in range(8, 16):
        step(made, slots, method, batches.at_places([place]), False, None, 1 / 8)
    alone = gradient(slots)
    assert max(g.abs().max() for g in alone) > 0
    assert_close(mixed, alone, rtol=1e-3, atol=1e-5 * max(g.abs().max() for g in alone).item())


def test_what_is_measured_ahead_and_held_out_is_each_pictures_own(
    model: tuple[Family, Slots], records: list[Record], tmp_path: Path
):
    made, slots = model
    encoded = encode(made, records, tmp_path)
    batches = Batches(made, encoded, records, None, Learn(batch=5, updates=3), 0, 1)
    places = list(range(14, 1, -1))
    found = measure_opponent(made, slots, ["policy_real"], batches, places, tmp_path / "x.safetensors", 2, NOTHING)[
        "policy_real"
    ]
    with torch.no_grad():
        alone = torch.cat([measure(made, slots, "policy_real", batches.at_places([place])) for place in places])
        assert_close(found, alone, rtol=1e-4, atol=1e-6)
        whole = heldout_errors(made, slots, encoded, records, None, ["policy_real"], 2, 3, NOTHING)["policy_real"]
        for record, error in zip(records, whole, strict=True):
            batch = make_batch(made, encoded, [(record, 0), (record, 1)], None, None, ("heldout",))
            assert_close(measure(made, slots, "policy_real", batch).mean(), error, rtol=1e-4, atol=1e-6)


def test_fakes_have_the_shapes_of_their_pictures_and_so_do_their_paths(
    model: tuple[Family, Slots], records: list[Record], tmp_path: Path
):
    made, _ = model
    encoded, store = encode(made, records, tmp_path), Store(tmp_path / "fakes")
    settings = Play(steps=2, guidance=2.0, points=2)
    play(made, encoded, records, settings, 2, store, NOTHING, "x")
    again = Store(tmp_path / "fakes")
    for r in records:
        fake = again.get([fake_key(r)])
        assert fake["x0"].shape == encoded.real([r]).shape and fake["x_t"].shape[2:] == fake["x0"].shape[1:]
        alone = Store(tmp_path / f"alone {r.key}")
        play(made, encoded, [r], settings, 2, alone, NOTHING, "x")
        assert_close(alone.get([fake_key(r)]), fake, rtol=1e-3, atol=1e-4)
    assert fake_key(replace(records[0], bucket=(80, 48))) != fake_key(records[0]), "another rule of shapes meets no old fakes"
    pictures = decode_latents(made, [again.get([fake_key(r)])["x0"][0] for r in records], 2)
    assert [strip(picture).size for picture in pictures] == [r.bucket for r in records]


def test_pairs_share_the_shape_that_suits_both(model: tuple[Family, Slots], folder: Path, tmp_path: Path):
    for side, sizes in (("win", [(160, 96), (96, 160)]), ("lose", [(96, 160), (96, 150)])):
        (folder / side).mkdir()
        for i, size in enumerate(sizes):
            Image.linear_gradient("L").resize(size).convert("RGB").save(folder / side / f"{i}.png")
            (folder / "win" / f"{i}.txt").write_text(f"pair {i}")
    found = survey(Data(folder=str(folder)), pairs=True, grid=Grid(*size_and_step(Model())))
    both = sorted(found.train + found.heldout, key=lambda r: r.path)
    assert [r.bucket for r in both] == [(64, 64), (48, 80)]
    encoded = encode(model[0], both, tmp_path)
    for r in both:
        assert encoded.rejected([r]).shape == encoded.real([r]).shape


def test_a_picture_alone_in_its_shape_still_meets_another(model: tuple[Family, Slots], records: list[Record], tmp_path: Path):
    alone = other_pictures(records)
    assert set(alone) == {records[2].key, records[7].key}
    encoded = Encoded(model[0], records, tmp_path, 3, NOTHING, None, list(alone.values()))
    session: Any = type("G", (), {"train": records, "encoded": encoded, "settings": load_settings("demo")})()
    fakes = Session._shuffled(session, 1)
    for r in records:
        assert fakes([r]).shape == encoded.real([r]).shape
        assert not torch.equal(fakes([r]), encoded.real([r]))


def test_a_whole_run_learns_from_several_shapes(folder: Path, tmp_path: Path):
    settings = validate_settings({
        "data": {"folder": str(folder), "flip": True, "crop": "random"}, "model": {"rank": 2}, "play": {"steps": 1},
        "learn": {"updates": 2, "batch": 4}, "memory": {"play_batch": 3, "micro_batch": 2}, "run": {"rounds": 1},
        "judge": {"draws": 1, "prompts": 1, "stop": False},
    })  # fmt: skip
    outcome = train(settings, tmp_path / "runs" / "a", Quiet())
    assert len(outcome.rounds) == 1 and outcome.rounds[0]["policy_real"] > 0
    assert outcome.run.sheet_path(1).exists() and outcome.run.export_path.exists()


# Cuts and mirror images


def test_a_cut_is_recorded_as_it_was_made():
    image = Image.linear_gradient("L").resize((200, 100)).convert("RGB")
    for place in (0.0, 0.3, 0.5, 1.0):
        cut = resize_and_crop(image, (64, 64), (place, 0.5))
        assert cut.original_size == (200, 100) and cut.crop == (round(64 * place), 0)
        whole = image.resize((128, 64), Image.Resampling.LANCZOS).crop((cut.crop[0], 0, cut.crop[0] + 64, 64))
        assert max(high for _, high in _difference(cut.image, whole)) <= 6


def _difference(a: Image.Image, b: Image.Image) -> list[tuple[int, int]]:
    from PIL import ImageChops

    return ImageChops.difference(a, b).getextrema()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 1.0])
def test_a_mirrored_picture_is_the_one_of_the_mirrored_original(place: float):
    image = Image.linear_gradient("L").rotate(30).resize((200, 100)).convert("RGB")
    there = mirror(resize_and_crop(image, (64, 64), (place, 0.5)))
    here = resize_and_crop(ImageOps.mirror(image), (64, 64), (1 - place, 0.5))
    assert there.crop == here.crop and there.original_size == here.original_size
    assert max(high for _, high in _difference(there.image, here.image)) <= 1


def test_mirror_images_are_encoded_once_and_shown_in_turn(model: tuple[Family, Slots], records: list[Record], tmp_path: Path):
    made = model[0]
    encoded = encode(made, records, tmp_path, flip=True)
    batches = Batches(made, encoded, records, None, Learn(batch=8, updates=4), 0, 1)
    shown = [row for update in range(4) for row in batches.rows(range(update * 8, update * 8 + 8))]
    for record in records:
        flips = [r.flip for r, _ in shown if r.key == record.key]
        assert flips in ([True, False] * 2, [False, True] * 2)
        plain, other = encoded.real([record]), encoded.real([replace(record, flip=True)])
        width, height = (record.bucket or (0, 0))[:2]
        image = resize_and_crop(Image.open(record.path).convert("RGB"), (width, height))
        assert_close(made.encode_pictures([mirror(image)])["x0"], other, rtol=1e-3, atol=1e-4)
        assert not torch.equal(plain, other) and fake_key(record) == fake_key(replace(record, flip=True))
    assert any(r.flip for r, turn in shown if turn == 0) and not all(r.flip for r, turn in shown if turn == 0)


def test_a_sample_of_the_posterior_is_the_pictures_own(model: tuple[Family, Slots], records: list[Record], tmp_path: Path):
    made = model[0]
    mean, sample = (encode(made, records, tmp_path / kind, latents=kind) for kind in ("mean", "sample"))
    again = encode(made, records[::-1], tmp_path / "again", latents="sample")
    for r in records:
        assert_close(sample.real([r]), again.real([r]), rtol=1e-3, atol=1e-4)
        spread = (sample.real([r]) - mean.real([r])).std()
        assert 0 < spread < mean.real([r]).std()
    assert fingerprint_files([records[0].path]) == records[0].key
