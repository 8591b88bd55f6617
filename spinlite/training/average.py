"""The average of a policy's weights over the updates of a round (EMA). A round saves it instead of the last weights."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of these weights, from how they are now. With a decay of 0 it is off and takes no memory.

    It takes as much memory as the weights, on their device. Its first updates decay faster, so that the start of the round is
    soon forgotten: min(decay, (1 + n) / (10 + n)) after n earlier ones, as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float, weights: Sequence[nn.Parameter]) -> None:
        self._decay, self._weights = decay, list(weights) if decay else []
        self._mean = [weight.detach().clone() for weight in self._weights]

    def update(self, count: int) -> None:
        """Take in the weights after the `count`th update of the round, counted from 1."""
        decay = min(self._decay, count / (9 + count))
        for mean, weight in zip(self._mean, self._weights, strict=True):
            mean.lerp_(weight.detach(), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """A copy for the run's state, on the CPU; `restore` takes it."""
        return {str(i): mean.cpu().clone() for i, mean in enumerate(self._mean)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        for i, mean in enumerate(self._mean):
            mean.copy_(state[str(i)])

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average in the place of the weights, for good."""
        for mean, weight in zip(self._mean, self._weights, strict=True):
            weight.copy_(mean)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average is in the place of the weights within the block, e.g. to save it."""
        before = [weight.detach().clone() for weight in self._weights]
        self.apply()
        yield
        with torch.no_grad():
            for weight, value in zip(self._weights, before, strict=True):
                weight.copy_(value)
