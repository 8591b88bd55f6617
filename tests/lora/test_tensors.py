"""A LoRA as tensors: what is known of it without a file."""

import pytest
import torch

from spinlite.lora.tensors import Pair, changes_nothing

ONES, ZEROS = Pair(torch.ones(2, 3), torch.ones(4, 2)), Pair(torch.ones(2, 3), torch.zeros(4, 2))
APART = Pair(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
TINY = Pair(torch.full((2, 3), 1e-30), torch.full((4, 2), 1e-30))
BROKEN = Pair(torch.full((2, 3), torch.nan), torch.ones(4, 2))


@pytest.mark.parametrize(
    ("lora", "nothing"),
    [({}, True), ({"a": ZEROS}, True), ({"a": ZEROS, "b": ONES}, False), ({"a": APART}, True), ({"a": TINY}, False),
     ({"a": BROKEN}, False)],
    ids=["empty", "zeros", "one is not zero", "zero in the product only", "tiny", "nan"],
)  # fmt: skip
def test_a_lora_of_zeros_changes_nothing(lora: dict[str, Pair], nothing: bool):
    assert changes_nothing(lora) is nothing
