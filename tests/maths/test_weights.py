"""The exact objective's step densities, and the weights of times: against direct computation in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from spinlite.maths.paths import Path
from spinlite.maths.times import TimeMap
from spinlite.maths.transitions import transition
from spinlite.maths.weights import weigh


class Exact(Path):
    """A path whose coefficients are in float64."""

    def coefficients(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (ndim - 1)
        if self.alpha_bar is None:
            return (1 - t.double()).view(shape), t.double().view(shape)
        bar = self.alpha_bar[t].double()
        return bar.sqrt().view(shape), (1 - bar).sqrt().view(shape)


BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)  # Stable Diffusion's
PATHS = {"eps": Exact("eps", BAR), "v": Exact("v", BAR), "flow": Exact("flow")}


def steps(path: Path, n: int = 5) -> tuple[Tensor, Tensor]:
    """Times and the earlier times that a sampler would go to."""
    if path.alpha_bar is None:
        return torch.linspace(0.3, 0.95, n, dtype=torch.float64), torch.linspace(0.2, 0.8, n, dtype=torch.float64)
    t = torch.linspace(100, 999, n).long()
    return t, t - 50


def noise_in(path: Path, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    return path.invert(prediction, x_t, t)[1]


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_ratio_of_step_densities_is_a_weighted_difference_of_errors(path: Path, eta: float):
    """log p_policy(x_t' | x_t) - log p_opponent(x_t' | x_t), by torch's own normal distribution, on any x_t'."""
    torch.manual_seed(0)
    (t, earlier), shape = steps(path), (5, 3, 4)
    x_t, x_earlier, policy, opponent = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    step = transition(path, t, earlier, eta, x_t.ndim)

    def log_density(prediction: Tensor) -> Tensor:
        mean = step.mean(x_t, noise_in(path, prediction, x_t, t))
        return Normal(mean, step.spread).log_prob(x_earlier).flatten(1).sum(1)

    def error(prediction: Tensor) -> Tensor:
        return (step.target(x_t, x_earlier) - noise_in(path, prediction, x_t, t)).square().flatten(1).mean(1)

    gain = error(opponent) - error(policy)
    assert_close(log_density(policy) - log_density(opponent), 12 * step.density_weight() * gain)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_on_the_opponents_own_path_its_prediction_is_the_target(path: Path):
    """x_t' drawn by the opponent with noise z: eps* = its eps + (spread / h) z; over z the gain is -||eps_k - eps_net||^2."""
    torch.manual_seed(1)
    (t, earlier), shape = steps(path), (5, 40_000)
    x_t, opponent = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    policy, z = opponent + 0.1 * torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    step = transition(path, t, earlier, 1.0, x_t.ndim)
    target = step.target(x_t, step.mean(x_t, opponent) + step.spread * z)
    assert_close(target, opponent + step.spread / step.h * z)
    gain = ((target - opponent).square() - (target - policy).square()).mean(1)
    expected = -(opponent - policy).square().mean(1)
    chance = 2 * 0.1 * (step.spread / step.h).flatten().abs() / math.sqrt(shape[1])  # deviation of the term linear in z
    assert ((gain - expected).abs() < 5 * chance).all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_real_samples_step_asks_for_its_own_noise(path: Path, eta: float):
    """x_t' ~ q(x_t' | x_t, x_0) of DDIM (its eq. 7): eps* = eps + (spread / h) z; and x_t' is noised as at its own time."""
    torch.manual_seed(2)
    (t, earlier), shape = steps(path), (5, 50_000)
    x0 = torch.full(shape, 0.7, dtype=torch.float64)
    eps, z = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    step = transition(path, t, earlier, eta, 2)
    (a, s), (a_, s_) = path.coefficients(t, 2), path.coefficients(earlier, 2)
    x_t = a * x0 + s * eps
    x_earlier = a_ * x0 + torch.sqrt(s_**2 - step.spread**2) * (x_t - a * x0) / s + step.spread * z
    assert_close(step.target(x_t, x_earlier), eps + step.spread / step.h * z)
    assert_close(x_earlier.mean(1), 0.7 * a_[:, 0], atol=0.02, rtol=0)
    assert_close(x_earlier.std(1), s_[:, 0], atol=0.01, rtol=0)


def test_a_step_is_diffusers_ddim_step():
    from diffusers import DDIMScheduler

    torch.manual_seed(3)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(20)
    x_t, eps, z = (torch.randn(1, 4, 8, 8) for _ in range(3))
    for place in (0, 10, 18):
        t = scheduler.timesteps[place : place + 1]
        theirs = scheduler.step(eps, t[0], x_t, eta=0.7, variance_noise=z).prev_sample  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        step = transition(Path("eps", scheduler.alphas_cumprod), t, t - 50, 0.7, 4)
        assert_close(step.mean(x_t, eps) + step.spread * z, theirs, atol=1e-4, rtol=1e-4)


KINDS = ["constant", "min-snr", "transition"]


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.25, 0.75)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_weights_average_to_1_over_the_times_in_use(path: Path, kind, span: tuple[float, float]):
    low, high = span
    u = (torch.arange(1000) + 0.5) / 1000 * (high - low) + low
    weights = weigh(path, kind, path.times(u), low, high)
    assert weights.mean().item() == pytest.approx(1, rel=1e-4) and (weights >= 0).all() and weights.isfinite().all()


def test_min_snr_by_its_papers_formulas():
    t = torch.tensor([10, 500, 990])
    snr = (BAR / (1 - BAR))[t].double()
    for name, own in (("eps", snr.clamp_max(5) / snr), ("v", snr.clamp_max(5) / (snr + 1))):
        got = weigh(PATHS[name], "min-snr", t)
        assert_close(got / got[0], own / own[0], check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["eps", "v", "flow"])
def test_the_transition_weight_is_that_of_a_step_of_the_schedule(name: str):
    path = PATHS[name]
    t = torch.tensor([100, 500, 990]) if path.alpha_bar is not None else torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    step = transition(path, t, t - (1 if path.alpha_bar is not None else 1e-3), 1.0, 1)
    a, _ = path.coefficients(t, 1)
    eps_share = {"eps": torch.ones_like(a), "v": a, "flow": a}[name].square()  # of the path's own squared error
    expected, got = step.density_weight() * eps_share, weigh(path, "transition", t)
    assert_close(got / got[0], expected / expected[0], check_dtype=False, rtol=1e-3, atol=1e-6)


def test_weights_of_a_schedule_that_ends_in_pure_noise_are_finite():
    bar = BAR.clone()
    bar[-1] = 0
    for kind in KINDS:
        assert weigh(Path("v", bar), kind, torch.tensor([0, 1, 999])).isfinite().all()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("spread", [TimeMap(), TimeMap(shift=3.0), TimeMap("logit-normal"), TimeMap("logit-normal", 7.6)])
def test_times_are_spread_by_a_map_with_an_exact_inverse(spread: TimeMap):
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t = spread.times(u)
    assert (t.diff() > 0).all() and t.min() >= 0 and t.max() <= 1
    assert_close(spread.share(t), u, atol=1e-12, rtol=0)
    inside = spread.within(u, 0.3, 0.8)
    assert inside.min() >= 0.3 and inside.max() <= 0.8
    first, last = spread.share(torch.tensor([0.3, 0.8], dtype=torch.float64)).tolist()
    assert_close(inside, spread.times(first + (last - first) * u), atol=1e-6, rtol=0)
    weights = weigh(Path("flow"), "min-snr", Path("flow").times(inside.float()), 0.3, 0.8, spread)
    assert_close(weights.mean().item(), 1.0, atol=1e-3, rtol=0)


def test_times_have_the_published_values():
    assert_close(TimeMap(shift=3.0).times(torch.tensor([0.5])), torch.tensor([0.75]))
    assert_close(TimeMap("logit-normal").times(torch.tensor([0.5, 0.841344746])), torch.tensor([0.5, 1 / (1 + math.exp(-1))]))
    low, high = 0.1, 0.9
    u = torch.rand(5)
    assert (TimeMap().within(u, low, high) == low + (high - low) * u).all()  # SD's draws keep every bit
