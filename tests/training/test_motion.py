"""Motion of clips: by hand, as a share, and when a run stops because its clips stand still."""

import torch
from torch import Tensor

from spinlite.training.motion import has_stopped, motions, share


def clip(*levels: float) -> Tensor:
    """A latent of 2 channels, (2, F, 1, 1): the second is twice the first."""
    return torch.tensor([levels, [2 * level for level in levels]])[..., None, None]


def test_motion_is_the_mean_square_of_the_steps_between_frames():
    """Steps 1 and 3 in the first channel, 2 and 6 in the second: (1 + 9 + 4 + 36) / 4."""
    assert motions([clip(0, 1, 4)]).tolist() == [12.5]
    assert motions([clip(0, 1, 4), clip(5, 5), clip(0, -1)]).tolist() == [12.5, 0.0, 2.5]
    assert motions([clip(3.0), torch.zeros(4, 8, 8), torch.zeros(2)]).tolist() == []


def test_half_as_far_is_a_quarter_of_the_motion_and_pictures_have_none():
    real = [clip(0, 2, 0), clip(1, 1, 3)]
    assert share([x / 2 for x in real], real) == 0.25
    assert share(real, [clip(1, 1)]) is None and share([clip(1)], real) is None


def test_samples_that_lost_their_motion_stop_a_run_but_calmer_or_few_ones_do_not():
    random = torch.Generator().manual_seed(0)
    real = [torch.randn(2, 5, 2, 2, generator=random) for _ in range(12)]
    lively = [2 * x for x in real]
    assert has_stopped(real, real, [0.5 * x for x in real])
    assert not has_stopped(real, real, [0.8 * x for x in real]), "0.64 of the motion"
    assert not has_stopped(real, lively, real), "less than at the start, but as much as the real ones"
    assert not has_stopped(lively, [0.4 * x for x in real], [0.35 * x for x in real]), "little from the start on"
    assert not has_stopped(real[:1], real[:1], [0.1 * real[0]]), "one clip says nothing"
    stills = [x[:, :1] for x in real]
    assert not has_stopped(stills, stills, stills)
