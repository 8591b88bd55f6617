import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spinlite.methods.ddo import DDO
from spinlite.methods.dpo import DPO
from spinlite.methods.dro import DRO
from spinlite.methods.kto import KTO
from spinlite.methods.registry import METHODS
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.methods.sudo import SUDO
from spinlite.training.step import required_errors

INF = float("inf")
PAIRED = [SPIN(), DPO(), SePPO(), SePPO(gate="indicator"), SePPO(gate="sft"), SePPO(gate="none"), SUDO()]
LEVELS = {DRO(): 1.0, KTO(): 1.0, DDO(): 2 * math.log(2), DDO(alpha=0.5): 1.5 * math.log(2)}  # where policy = opponent


def errors(*values: float) -> dict[str, Tensor]:
    names = ("policy_real", "policy_fake", "opponent_real", "opponent_fake")
    return {n: torch.tensor([v], dtype=torch.float64, requires_grad=True) for n, v in zip(names, values, strict=True)}


def slopes(method, found: dict[str, Tensor]) -> dict[str, float]:
    method.loss(**found).sum().backward()
    return {name: value.grad.item() if value.grad is not None else 0.0 for name, value in found.items()}


@pytest.mark.parametrize("method", PAIRED, ids=str)
def test_a_policy_that_is_its_opponent_loses_log_2(method):
    equal = torch.rand(5)
    fake = torch.rand(5)
    loss = method.loss(policy_real=equal, policy_fake=fake, opponent_real=equal, opponent_fake=fake)
    assert_close(loss, torch.full((5,), math.log(2)))


@pytest.mark.parametrize(("method", "level"), LEVELS.items(), ids=str)
def test_other_links_have_a_level_of_their_own_there(method, level: float):
    equal, fake = torch.rand(5), torch.rand(5)
    loss = method.loss(policy_real=equal, policy_fake=fake, opponent_real=equal, opponent_fake=fake)
    assert_close(loss, torch.full((5,), level))


def test_spin_by_hand():
    """beta 10: gain real .2 - .1 = .1, gain fake .3 - .4 = -.1, margin .2, logit 2, anchor .5 x 10 x .1 = .5."""
    loss = SPIN(beta=10, bound=INF, anchor=0.5).loss(**errors(0.1, 0.4, 0.2, 0.3))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)) - 0.5)


def test_spins_gradient_is_reweighting_times_matching_minus_pushing():
    found = slopes(SPIN(beta=10, bound=INF, anchor=0), errors(0.1, 0.4, 0.2, 0.3))
    weight = 10 / (1 + math.exp(2))  # beta sigmoid(-logit)
    assert found["policy_real"] == pytest.approx(weight)
    assert found["policy_fake"] == pytest.approx(-weight)


def test_the_bound_ends_the_push_and_the_anchor_keeps_pulling():
    found = slopes(SPIN(beta=10, bound=0.2, anchor=0.5), errors(0.1, 0.4, 0.2, 0.3))  # -.1 is below -.2 x .3 = -.06
    assert found["policy_fake"] == 0
    assert found["policy_real"] == pytest.approx(10 / (1 + math.exp(1.6)) + 5)


def test_dpo_is_spin_on_given_pairs():
    assert_close(DPO(beta=10, bound=0.5, anchor=0.1).loss(**errors(0.1, 0.4, 0.2, 0.3)),
                 SPIN(beta=10, bound=0.5, anchor=0.1).loss(**errors(0.1, 0.4, 0.2, 0.3)))  # fmt: skip
    assert (DPO.opponent, DPO.fakes) == ("base", "given")


@pytest.mark.parametrize(("gate", "logit", "push"), [("sign", -1 + -1, +1), ("indicator", -1, 0), ("none", -1 + 1, -1)])
def test_seppos_gate_where_the_policy_is_worse_on_real(gate: str, logit: float, push: int):
    """beta 10: gain real .1 - .2 = -.1, gain fake .3 - .4 = -.1; sign turns the fake into a second real."""
    method = SePPO(beta=10, bound=INF, anchor=0, gate=gate)  # pyright: ignore[reportArgumentType]
    found = errors(0.2, 0.4, 0.1, 0.3)
    assert method.loss(**found).item() == pytest.approx(math.log(1 + math.exp(-logit)))
    got = slopes(method, errors(0.2, 0.4, 0.1, 0.3))
    weight = 10 / (1 + math.exp(logit))
    assert got["policy_real"] == pytest.approx(weight)
    assert got["policy_fake"] == pytest.approx(push * weight)


def test_seppos_switch_is_plain_sft_where_the_policy_is_no_better_on_real():
    """beta 10: gain real -.1, slope beta / 2 at any distance; where it is better the pair is SPIN's."""
    method = SePPO(beta=10, bound=INF, anchor=0, gate="sft")
    assert method.loss(**errors(0.2, 0.4, 0.1, 0.3)).item() == pytest.approx(math.log(2) + 0.5)
    got = slopes(method, errors(0.2, 0.4, 0.1, 0.3))
    assert (got["policy_real"], got["policy_fake"]) == (pytest.approx(5), 0)
    assert slopes(method, errors(5.2, 0.4, 0.1, 0.3))["policy_real"] == pytest.approx(5)
    assert_close(method.loss(**errors(0.1, 0.4, 0.2, 0.3)), SPIN(10, INF, 0).loss(**errors(0.1, 0.4, 0.2, 0.3)))


def test_dro_by_hand_and_its_end():
    """beta 2: margin .1 + .1, loss 1 - .4; past a margin of 1/2 no slope is left."""
    assert DRO(beta=2).loss(**errors(0.1, 0.4, 0.2, 0.3)).item() == pytest.approx(0.6)
    assert slopes(DRO(beta=2), errors(0.1, 0.4, 0.2, 0.3)) == pytest.approx(
        {"policy_real": 2, "policy_fake": -2, "opponent_real": -2, "opponent_fake": 2})  # fmt: skip
    assert set(slopes(DRO(beta=2), errors(0.1, 0.9, 0.2, 0.3)).values()) == {0.0}


def test_dro_is_the_papers_hinge_in_units_of_its_margin():
    """Diffusion-DRO, eq. 15: max(m, d_w - d_l) with m = -0.001, d = policy error - base error."""
    torch.manual_seed(0)
    policy_real, policy_fake, opponent_real, opponent_fake = torch.rand(4, 9, dtype=torch.float64) * 1e-3
    theirs = torch.maximum(torch.tensor(-0.001), (policy_real - opponent_real) - (policy_fake - opponent_fake))
    ours = DRO().loss(policy_real, policy_fake, opponent_real, opponent_fake)
    assert_close((theirs + 0.001) / 0.001, ours)


def test_ddo_by_hand():
    """beta 10: gains .1 and -.1: both terms softplus(-1)."""
    one = math.log(1 + math.exp(-1))
    assert DDO(beta=10, alpha=0.5, bound=INF).loss(**errors(0.1, 0.4, 0.2, 0.3)).item() == pytest.approx(1.5 * one)
    got = slopes(DDO(beta=10, alpha=0.5, bound=0.2), errors(0.1, 0.4, 0.2, 0.3))  # -.1 is below -.2 x .3
    assert got["policy_real"] == pytest.approx(10 / (1 + math.e)) and got["policy_fake"] == 0


def test_ddos_optimum_on_true_log_ratios_is_the_distribution_of_the_real_ones():
    """Two outcomes, real (.8, .2), opponent (.5, .5): minimise over the policy p with gain = log(p / opponent)."""
    real, opponent = torch.tensor([0.8, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)

    method, one = DDO(beta=1, alpha=1, bound=INF), torch.ones(2, dtype=torch.float64)

    def loss(first: float) -> float:
        gain = torch.log(torch.tensor([first, 1 - first], dtype=torch.float64) / opponent)
        return (real * method.loss(one - gain, one, one, one) + opponent * method.loss(one, one - gain, one, one)).sum().item()

    grid = [i / 200 for i in range(1, 200)]
    assert min(grid, key=loss) == pytest.approx(0.8)


def test_kto_by_hand_and_its_flat_ends():
    """beta 10: gains .1 and -.1: sigmoid(-1) twice; a fake lost by far is left alone."""
    assert KTO(beta=10).loss(**errors(0.1, 0.4, 0.2, 0.3)).item() == pytest.approx(2 / (1 + math.e))
    assert abs(slopes(KTO(beta=10), errors(0.1, 9.0, 0.2, 0.3))["policy_fake"]) < 1e-9
    near = slopes(KTO(beta=10), errors(0.1, 0.4, 0.2, 0.3))
    assert near["policy_real"] == pytest.approx(10 * math.e / (1 + math.e) ** 2) and near["policy_fake"] < 0


def test_sudo_is_twice_half_dpo_and_half_the_error():
    found = errors(0.1, 0.4, 0.2, 0.3)
    theirs = 0.5 * DPO(beta=10, bound=INF).loss(**found) + 0.5 * (found["policy_real"] - found["opponent_real"])
    assert_close(SUDO(beta=10, bound=INF).loss(**found), 2 * theirs)
    assert (SUDO.opponent, SUDO.fakes) == ("base", "shuffled")


def test_seppo_is_spin_where_the_policy_is_better_on_real():
    mine = SePPO(beta=10, bound=0.2, anchor=0.3)
    assert_close(mine.loss(**errors(0.1, 0.4, 0.2, 0.3)), SPIN(10, 0.2, 0.3).loss(**errors(0.1, 0.4, 0.2, 0.3)))


def test_seppo_plays_and_compares_with_its_reference():
    for reference in ("random", "previous", "base"):
        assert SePPO(reference=reference).opponent == reference
    assert SePPO().fakes == "played"


def test_sft_is_the_error():
    assert SFT().loss(torch.tensor([0.3])).item() == pytest.approx(0.3)
    assert SFT.opponent is None and SFT.fakes is None


@pytest.mark.parametrize("method", [SFT(), *PAIRED, DDO(), KTO(), DRO()], ids=str)
def test_slopes_agree_with_differences(method):
    torch.manual_seed(1)
    values = {name: (torch.rand(7, dtype=torch.float64) * 1e-3 + 0.1).requires_grad_() for name in required_errors(method)}

    def loss(*errors: Tensor) -> Tensor:
        return method.loss(**dict(zip(values, errors, strict=True)))

    assert torch.autograd.gradcheck(loss, tuple(values.values()), eps=1e-9, atol=1e-2, rtol=1e-3)


def test_the_policy_is_measured_last():
    assert required_errors(SPIN())[:2] == ["opponent_real", "opponent_fake"]
    assert required_errors(SFT()) == ["policy_real"]


def test_methods_are_frozen_and_named():
    assert set(METHODS) == {"sft", "dpo", "spin", "seppo", "dro", "ddo", "kto", "sudo"}
    with pytest.raises(AttributeError):
        SPIN().beta = 1  # pyright: ignore[reportAttributeAccessIssue]
