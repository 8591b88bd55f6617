"""Operations on meta tensors: what is remembered of them is what torch says, and only where it is sure to be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinlite.plan import meta
from spinlite.plan.meta import META
from spinlite.plan.simulation import simulate, simulating


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meta, "FORMS", {})


def _whole(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64, device=META)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + 1.5,
        lambda x: torch.addmm(x, x, x.t()),
        lambda x: F.layer_norm(x, (6,)),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.half() + x,
        lambda x: x.t().contiguous(),
        lambda x: x[:3] * x[3:],
        lambda x: torch.cat([x, x], dim=1),
        lambda x: x.add_(1),
        lambda x: x.expand(4, 6, 6) * 2,
    ],
)
def test_what_is_remembered_is_what_torch_says(call: Callable[[Tensor], Tensor]):
    plain = call(torch.ones(6, 6))
    with simulating():
        for _ in range(2):
            out = call(torch.ones(6, 6, device=META))
            assert (out.shape, out.stride(), out.dtype) == (plain.shape, plain.stride(), plain.dtype)
            assert out.untyped_storage().nbytes() == plain.untyped_storage().nbytes()
    assert meta.FORMS


def test_numbers_of_another_type_are_another_question():
    with simulating():
        results = [torch.ops.aten.add.Scalar(_whole(2), number) for number in (1, 1.0, True)]
    assert [r.dtype for r in results] == [torch.int64, torch.float32, torch.int64]


def test_single_numbers_are_asked_each_time():
    """A tensor of one number gives way to the type of others; a number of Python's arrives as such a tensor too."""
    with simulating():
        one = torch.ones((), device=META, dtype=torch.float64)
        assert (torch.ones(2, device=META) * one).dtype == torch.float32 and (one * one).dtype == torch.float64


def test_a_tensor_that_gets_another_form_gets_it_each_time():
    with simulating():
        for _ in range(2):
            x = torch.ones(2, device=META)
            assert x.resize_(5).shape == (5,) and x.shape == (5,)


def test_views_stay_views():
    with simulating():
        for _ in range(2):
            x = torch.ones(2, 3, device=META)
            for view in (x.t(), x.view(6), torch.ops.aten._unsafe_view(x, [3, 2]), x.detach()):
                assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_the_second_simulation_costs_what_the_first_did():
    with torch.device(META):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 8), nn.LayerNorm(8)
        )

    def step() -> None:
        net(torch.ones(61, 3, 8, 8, device=META)).sum().backward()
        net.zero_grad()

    first = simulate(step)
    known = len(meta.FORMS)
    assert simulate(step) == first and len(meta.FORMS) == known and first.operations() > 0


def test_a_mistake_in_a_call_is_not_taken_for_the_end_of_what_can_be_simulated():
    with pytest.raises(TypeError, match="len"):
        simulate(lambda: len(5))  # pyright: ignore[reportArgumentType]
    assert simulate(lambda: torch.ones(3, device=META).cpu().numpy()).kept == (0, 0)
