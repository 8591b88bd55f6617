import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spinlite.learn import asked
from spinlite.methods import DPO, METHODS, SFT, SPIN, SePPO

INF = float("inf")
PAIRED = [SPIN(), DPO(), SePPO(), SePPO(gate="indicator"), SePPO(gate="none")]


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


@pytest.mark.parametrize("method", [SFT(), *PAIRED], ids=str)
def test_slopes_agree_with_differences(method):
    torch.manual_seed(1)
    values = {name: (torch.rand(7, dtype=torch.float64) * 1e-3 + 0.1).requires_grad_() for name in asked(method)}


    def loss(*errors: Tensor) -> Tensor:
        return method.loss(**dict(zip(values, errors, strict=True)))

    assert torch.autograd.gradcheck(loss, tuple(values.values()), eps=1e-9, atol=1e-2, rtol=1e-3)


def test_the_policy_is_measured_last():
    assert asked(SPIN())[:2] == ["opponent_real", "opponent_fake"]
    assert asked(SFT()) == ["policy_real"]


def test_methods_are_frozen_and_named():
    assert set(METHODS) == {"sft", "dpo", "spin", "seppo"}
    with pytest.raises(AttributeError):
        SPIN().beta = 1  # pyright: ignore[reportAttributeAccessIssue]
