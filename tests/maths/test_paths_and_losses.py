import math

import pytest
import torch
from torch.testing import assert_close

from spinlite.maths.draws import draw, gaussian, partners, permutation, seed_of
from spinlite.maths.losses import bounded, error, gate, hinge, preference
from spinlite.maths.paths import Path

BAR = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
PATHS = {"eps": Path("eps", BAR), "v": Path("v", BAR), "flow": Path("flow")}


def some(path: Path, n: int = 6):
    x0, eps = torch.randn(n, 3, 4), torch.randn(n, 3, 4)
    return x0, eps, path.times((torch.arange(n) + 0.5) / n)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_what_a_target_says_is_what_made_the_sample(path: Path):
    x0, eps, t = some(path)
    got_x0, got_eps = path.invert(path.target(x0, eps, t), path.noise(x0, eps, t), t)
    assert_close(got_x0, x0, atol=1e-4, rtol=1e-4)
    assert_close(got_eps, eps, atol=1e-4, rtol=1e-4)


def test_noise_and_targets_by_hand():
    half = Path("eps", torch.tensor([0.64]))  # a = 0.8, s = 0.6
    x0, eps, t = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([0])
    assert half.noise(x0, eps, t).item() == pytest.approx(0.8 * 2 - 0.6)
    assert half.target(x0, eps, t).item() == -1
    assert Path("v", torch.tensor([0.64])).target(x0, eps, t).item() == pytest.approx(0.8 * -1 - 0.6 * 2)
    flow, quarter = Path("flow"), torch.tensor([0.25])
    assert flow.noise(x0, eps, quarter).item() == pytest.approx(0.75 * 2 - 0.25)
    assert flow.target(x0, eps, quarter).item() == -3


def test_the_eps_error_is_a_squared_times_the_v_error():
    x0, eps, t = some(PATHS["v"])
    a, s = PATHS["v"].coefficients(t, 3)
    x_t = PATHS["v"].noise(x0, eps, t)
    v = torch.randn_like(x0)
    eps_of_v = a * v + s * x_t
    assert_close(error(eps_of_v, eps), a.flatten() ** 2 * error(v, PATHS["v"].target(x0, eps, t)), rtol=1e-3, atol=1e-5)


def test_times_cover_the_whole_schedule():
    u = torch.linspace(0, 1 - 1e-6, 1000)
    assert set(PATHS["eps"].times(u).tolist()) == set(range(50))
    assert PATHS["flow"].times(u).min() > 0 and PATHS["flow"].times(u).max() < 1


def test_only_flow_goes_without_a_schedule():
    with pytest.raises(ValueError, match="alpha_bar"):
        Path("eps")
    with pytest.raises(ValueError, match="alpha_bar"):
        Path("flow", BAR)


@pytest.mark.parametrize("shape", [(2,), (4, 3, 3), (4, 5, 3, 3)], ids=["points", "images", "video"])
def test_an_error_is_a_mean_per_sample_whatever_the_shape(shape: tuple[int, ...]):
    target = torch.zeros(3, *shape)
    prediction = torch.stack([torch.full(shape, float(k)) for k in (1, 2, 3)])
    assert error(prediction.half(), target).tolist() == [1, 4, 9]
    assert error(prediction.half(), target).dtype == torch.float32


def test_a_preference_by_hand():
    zero = torch.zeros(1)
    assert preference(zero, zero, 5000).item() == pytest.approx(math.log(2))
    margin = torch.tensor([4e-4])
    assert preference(margin, zero, 2500).item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-4)
    assert preference(zero, margin, 2500).item() == pytest.approx(math.log(1 + math.e), rel=1e-4)


def test_beta_is_half_of_the_one_with_the_factor_one_half():
    """Diffusion-DPO's authors write -0.5 * beta_dpo * (model_diff - ref_diff) as the logit."""
    torch.manual_seed(0)
    policy_real, policy_fake, opponent_real, opponent_fake = torch.rand(4, 5, dtype=torch.float64)
    beta_dpo = 40.0
    logit = -0.5 * beta_dpo * ((policy_real - policy_fake) - (opponent_real - opponent_fake))
    theirs = -torch.nn.functional.logsigmoid(logit)
    assert_close(preference(opponent_real - policy_real, opponent_fake - policy_fake, beta_dpo / 2), theirs)


def test_an_infinite_bound_is_none_also_where_the_opponent_is_perfect():
    gain, perfect = torch.tensor([-3.0, 0.5], requires_grad=True), torch.zeros(2)
    loss = preference(torch.zeros(2), bounded(gain, perfect, math.inf), 1.0)
    assert_close(loss, preference(torch.zeros(2), gain, 1.0))
    loss.sum().backward()
    assert gain.grad is not None and (gain.grad > 0).all()


def test_past_the_bound_a_worse_fake_pays_nothing():
    opponent = torch.tensor([0.1, 0.1, 0.1])
    gain = torch.tensor([0.02, -0.04, -0.09], requires_grad=True)
    counted = bounded(gain, opponent, 0.5)
    assert_close(counted, torch.tensor([0.02, -0.04, -0.05]))
    counted.sum().backward()
    assert_close(gain.grad, torch.tensor([1.0, 1.0, 0.0]))


def test_the_gates_and_their_tie_by_hand():
    opponent = torch.full((4,), 0.1)
    gain = torch.tensor([0.01, -0.01, 0.0, 5e-7])  # better, worse, equal, equal but for rounding
    assert gate(gain, opponent, "sign").tolist() == [1, -1, 0, 0]
    assert gate(gain, opponent, "indicator").tolist() == gate(gain, opponent, "sft").tolist() == [1, 0, 0, 0]
    assert gate(gain, opponent, "none").tolist() == [1, 1, 1, 1]
    assert not gate(gain.requires_grad_(), opponent, "sign").requires_grad


def test_a_draw_is_a_function_of_its_names_alone():
    u, eps = draw((2, 3), "a", 4, "learn", 0, 1)
    torch.manual_seed(5)
    again = draw((2, 3), "a", 4, "learn", 0, 1)
    assert u == again[0] and torch.equal(eps, again[1])
    others = [draw((2, 3), *names) for names in (("b", 4, "learn", 0, 1), ("a", 5, "learn", 0, 1), ("a", 4, "learn", 1, 1))]
    assert all(u != other[0] and not torch.equal(eps, other[1]) for other in others)
    assert seed_of("a", 1, 2) != seed_of("a", 12)
    assert torch.equal(gaussian((2,), "x", 1), gaussian((2,), "x", 1))


def test_the_times_of_one_sample_are_spread_and_of_many_uniform():
    one = sorted(draw((1,), "a", epoch)[0] for epoch in range(8))
    gaps = [b - a for a, b in zip(one, [*one[1:], one[0] + 1], strict=True)]
    assert max(gaps) < 2.7 / 8  # the golden ratio's worst gap; 8 independent numbers average 2.7 / 8 at their largest
    many = torch.tensor([draw((1,), str(i), 3)[0] for i in range(2000)])
    assert abs(many.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    assert (many >= 0).all() and (many < 1).all()


def test_an_order_is_a_permutation():
    assert sorted(permutation(9, "x", 1)) == list(range(9)) and permutation(9, "x", 1) == permutation(9, "x", 1) != permutation(
        9, "x", 2
    )


@pytest.mark.parametrize("count", [2, 3, 50])
def test_partners_are_others_each_taken_once(count: int):
    found = partners(count, "x", 1)
    assert sorted(found) == list(range(count)) and all(i != other for i, other in enumerate(found))
    assert count < 50 or found != partners(count, "x", 2)


def test_a_hinge_by_hand():
    gain_real, gain_fake = torch.tensor([0.0, 0.03, 0.2, -0.1]), torch.tensor([0.0, -0.02, 0.0, 0.0])
    assert_close(hinge(gain_real, gain_fake, 10), torch.tensor([1.0, 0.5, 0.0, 2.0]))
