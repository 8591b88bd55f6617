"""The energy distance of samples from pictures: by hand, without bias, and how often chance alone makes one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spinlite.data.records import Record
from spinlite.training.distance import COMPARED, Distance, compared, energy_distance


def measured(fakes: Tensor, reals: Tensor) -> Distance:
    found = energy_distance([*fakes], [*reals])
    assert found
    return found


def test_it_is_that_of_three_points_reckoned_by_hand():
    """Two reals are 2 apart in the mean, and two fakes too. A fake and the real of its own caption are no pair."""
    reals, fakes = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[10.0], [11.0], [13.0]])
    between = (9 + 7 + 11 + 8 + 13 + 12) / 6
    assert measured(fakes, reals).value == pytest.approx((2 * between - 2 - 2) / 2)


def test_it_is_0_in_the_mean_where_both_come_from_one_distribution_and_grows_with_a_cast():
    torch.manual_seed(0)
    found = [measured(torch.randn(12, 4, 4, 4), torch.randn(12, 4, 4, 4)).value for _ in range(200)]
    assert abs(torch.tensor(found).mean()) < 0.002
    reals, fakes = torch.randn(2, 64, 4, 4, 4)
    assert measured(fakes, reals).value < measured(fakes + 0.2, reals).value < measured(fakes + 0.4, reals).value
    assert measured(fakes, reals).value < measured(1.5 * fakes, reals).value


def test_it_has_no_unit_and_shapes_count_by_their_pictures():
    torch.manual_seed(0)
    reals, fakes = torch.randn(2, 8, 4, 4, 4)
    wide_reals, wide_fakes = torch.randn(2, 4, 4, 2, 8)
    a, b = measured(fakes, reals).value, measured(wide_fakes, wide_reals).value
    assert measured(3 * fakes, 3 * reals).value == pytest.approx(a)
    both = energy_distance([*fakes, *wide_fakes], [*reals, *wide_reals])
    assert both and both.value == pytest.approx((2 * a + b) / 3)
    few = energy_distance([*wide_fakes[:2], *fakes], [*wide_reals[:2], *reals])
    assert few and few.value == pytest.approx(a) and len(few.influence) == 8
    assert energy_distance([*fakes[:2]], [*reals[:2]]) is None


def test_its_standard_error_is_the_spread_of_many_trials():
    torch.manual_seed(0)
    found = [measured(torch.randn(32, 16) + 0.5, torch.randn(32, 16)) for _ in range(300)]
    spread = torch.tensor([each.value for each in found]).std().item()
    assert sum(each.error for each in found) / 300 == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("pictures", [8, 9, 24, 96])
def test_samples_that_differ_by_chance_alone_are_not_further(pictures: int):
    """Pictures of many colours: their means differ by chance as much as those of a cast do."""
    torch.manual_seed(pictures)

    def drawn() -> Tensor:
        return 0.5 * torch.randn(pictures, 4, 1, 1) + torch.randn(pictures, 4, 4, 4)

    pairs = [[measured(drawn() + 0.2, real) for _ in range(2)] for real in (drawn() for _ in range(200))]
    assert sum(now.is_above(before) for now, before in pairs) <= 3 * (pictures > 8)


def test_a_colour_cast_and_lost_or_gained_contrast_are_further_and_coming_nearer_is_not():
    torch.manual_seed(0)
    real, start, now = torch.randn(3, 32, 4, 8, 8)
    before = measured(start + 0.1, real)
    assert measured(now + 0.4, real).is_above(before) and measured(1.5 * now, real).is_above(before)
    assert measured(0.5 * now, real).is_above(before) and not measured(now, real).is_above(before)


def test_pictures_are_compared_once_each_and_spread_over_all():
    records = [Record(Path(), f"{caption}", f"{i:03}") for i in range(200) for caption in "ab"]
    chosen = compared(records)
    assert len(chosen) == len({r.key for r in chosen}) == COMPARED and chosen[0].key == "000" and chosen[-1].key > "195"
    assert compared(records[:10]) == records[:10:2] and compared([]) == []
