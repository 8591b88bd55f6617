"""Buckets: for every picture and every model a shape that is allowed, and the best of those."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spinlite.config.settings import Data, Model
from spinlite.data.buckets import Grid, crop_centre, fill_scale, kept_share
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.families.load import size_and_step

XL, SD = Grid((1024, 1024), 64), Grid((512, 512), 64)
grids = st.builds(
    lambda side, step, upscale: Grid((side, side), step, upscale),
    st.sampled_from([64, 512, 768, 1000, 1024]), st.sampled_from([16, 32, 64]), st.floats(1, 4),
)  # fmt: skip
sizes = st.tuples(st.integers(1, 9000), st.integers(1, 9000))


@given(grids, sizes)
def test_a_bucket_has_whole_steps_and_no_more_pixels_than_the_model_has(grid: Grid, size: tuple[int, int]):
    bucket = grid.bucket(size)
    if bucket is None:
        return
    assert bucket[0] * bucket[1] <= grid.native[0] * grid.native[1]
    for side, own in zip(bucket, grid.native, strict=True):
        assert side % grid.step == 0 or side == own
        assert own / 2 <= side <= 2 * own


@given(grids, sizes)
def test_no_picture_is_enlarged_beyond_the_factor(grid: Grid, size: tuple[int, int]):
    bucket = grid.bucket(size)
    assert bucket is None or fill_scale(size, bucket) <= grid.upscale + 1e-9


@given(grids, sizes)
def test_only_a_picture_that_is_too_small_for_the_smallest_bucket_has_none(grid: Grid, size: tuple[int, int]):
    fits = all(grid.upscale * side >= least for side, least in zip(size, grid.least, strict=True))
    assert (grid.bucket(size) is not None) == fits
    if not fits:
        needed = " x ".join(str(math.ceil(least / grid.upscale)) for least in grid.least)
        assert f"too small: {size[0]} x {size[1]} px, at least {needed} is needed" in grid.refusal(size)


@given(grids, sizes)
def test_a_picture_on_its_side_has_the_bucket_on_its_side(grid: Grid, size: tuple[int, int]):
    bucket, turned = grid.bucket(size), grid.bucket((size[1], size[0]))
    assert (bucket is None) == (turned is None)
    assert not (bucket and turned) or kept_share(size, bucket) == kept_share(size, (turned[1], turned[0]))


@given(grids, sizes)
def test_no_larger_shape_that_is_allowed_keeps_as_much_of_the_picture(grid: Grid, size: tuple[int, int]):
    """Against every shape there is, not only those that the grid lists."""
    bucket = grid.bucket(size)
    if bucket is None:
        return
    own, step = grid.native[0], grid.step
    sides = [side for side in range(step, 2 * own + 1, step) if side >= own / 2] + [own]
    for other in ((w, h) for w in sides for h in sides):
        if bucket[0] * bucket[1] < other[0] * other[1] <= own * own and fill_scale(size, other) <= grid.upscale:
            assert kept_share(size, other) < kept_share(size, bucket)


@given(grids)
def test_a_square_picture_of_any_size_is_learned_whole(grid: Grid):
    assert grid.bucket(grid.native) == grid.native
    assert grid.bucket((9000, 9000)) == grid.native
    small = grid.bucket(grid.least)
    assert small is not None and small[0] == small[1]


@given(grids, sizes, sizes)
def test_two_pictures_of_one_shape_are_neither_of_them_enlarged_too_far(grid: Grid, a: tuple[int, int], b: tuple[int, int]):
    shared = grid.bucket(a, b)
    assert shared == grid.bucket(b, a)
    if shared:
        assert max(fill_scale(a, shared), fill_scale(b, shared)) <= grid.upscale + 1e-9
    else:
        assert "too small" in grid.refusal(a, b)


@given(sizes, st.booleans())
def test_without_buckets_every_picture_has_the_models_own_size_or_none(size: tuple[int, int], wide: bool):
    grid = Grid((512, 256) if wide else (512, 512), 64, 2.0, many=False)
    fits = size[0] * 2 >= grid.native[0] and size[1] * 2 >= grid.native[1]
    assert grid.bucket(size) == (grid.native if fits else None)


def test_the_usual_sizes_of_sdxl():
    """Those of Podell et al. 2023 (arXiv 2307.01952), appendix I, nearest to each aspect ratio."""
    shapes = {(1024, 1024): 1.0, (1152, 896): 4 / 3, (1216, 832): 3 / 2, (1344, 768): 16 / 9, (832, 1216): 2 / 3}
    for shape, ratio in shapes.items():
        assert XL.bucket((round(3000 * ratio), 3000)) == shape


def test_there_are_not_more_shapes_than_pictures():
    """Of every aspect ratio to 4:1 there is: so many shapes, most of which no folder has."""
    for grid, count in ((XL, 26), (SD, 13)):
        assert len({grid.bucket((round(1000 * 1.01**i), 1000)) for i in range(140)}) <= count


def test_small_pictures_get_small_buckets():
    assert SD.bucket((400, 400)) == (512, 512) and Grid((512, 512), 64, 1.0).bucket((400, 400)) == (384, 384)
    assert SD.bucket((300, 200)) == (384, 256) and SD.bucket((171, 171)) == (256, 256) and SD.bucket((170, 171)) is None


@given(st.text(), st.text())
def test_a_random_cut_is_the_pictures_own(key: str, other: str):
    assert crop_centre(key, "centre") == (0.5, 0.5)
    cut = crop_centre(key, "random")
    assert cut == crop_centre(key, "random") and all(0 <= place < 1 for place in cut)
    assert key == other or cut != crop_centre(other, "random")


def test_the_frames_of_models_are_known_before_they_are_loaded():
    assert size_and_step(Model(base="blank:sdxl")) == ((1024, 1024), 64) and size_and_step(Model(base="blank:sd1")) == (
        (512, 512),
        64,
    )
    assert size_and_step(Model(base="demo")) == ((64, 64), 16) and size_and_step(Model(base="0", family="toy")) == ((8, 8), 8)


def test_the_square_pictures_of_the_demo_are_all_of_its_own_size():
    found = survey(Data(folder="demo"), grid=Grid(*size_and_step(Model())))
    assert {r.bucket for r in found.train + found.heldout} == {(64, 64)} and len(found.train + found.heldout) == 160


def test_a_picture_that_is_too_small_is_named_and_the_rest_goes_on(tmp_path: Path):
    for i, size in enumerate([(512, 512), (800, 400), (171, 300), (160, 300)]):
        Image.new("RGB", size, (50 * i, 0, 0)).save(tmp_path / f"p{i}.png")
        (tmp_path / f"p{i}.txt").write_text(f"caption {i}")
    found = survey(Data(folder=str(tmp_path), max_unusable=0.3), grid=SD)
    assert {r.path.name: r.bucket for r in found.train + found.heldout} == {
        "p0.png": (512, 512), "p1.png": (640, 320), "p2.png": (256, 448),
    }  # fmt: skip
    assert found.unusable == ["p3.png: too small: 160 x 300 px, at least 171 x 171 is needed (data.upscale = 1.5)"]
    with pytest.raises(SpinliteError, match="1 of 4 files"):
        survey(Data(folder=str(tmp_path)), grid=SD)
