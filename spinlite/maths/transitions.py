"""One step of a stochastic sampler, x_t -> x_t', as a Gaussian, and how its density depends on the denoising error.

DDIM with noise (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16), for any path x_t = a x0 + s eps; a', s' belong to the
earlier (cleaner) time t'. With a network whose prediction says that the noise in x_t is eps_net:

    x_t' ~ N(ratio x_t + h eps_net, spread^2)      ratio = a'/a       h = sqrt(s'^2 - spread^2) - a' s / a

So ||x_t' - mean||^2 = h^2 ||eps* - eps_net||^2 with eps* = (x_t' - ratio x_t) / h: a denoising error with another target,
and the log ratio of two networks' densities at x_t' is -h^2 / (2 spread^2) x the difference of their errors, summed over
elements. Where x_t' itself came from this step with eps and unit noise z, eps* = eps + (spread / h) z.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spinlite.maths.paths import Path


@dataclass(frozen=True)
class Transition:
    """A step's coefficients, each (B, 1, ...): mean = ratio x_t + h eps_net, standard deviation = spread."""

    ratio: Tensor
    h: Tensor
    spread: Tensor

    def mean(self, x_t: Tensor, eps: Tensor) -> Tensor:
        """The mean of the step if the noise in x_t is eps: (B, ...)."""
        return self.ratio * x_t + self.h * eps

    def target(self, x_t: Tensor, earlier: Tensor) -> Tensor:
        """eps*: the noise in x_t for which the mean of the step is `earlier`, (B, ...)."""
        return (earlier - self.ratio * x_t) / self.h

    def density_weight(self) -> Tensor:
        """h^2 / (2 spread^2), (B,): log density per element and unit of mean squared eps error. Infinite for spread 0."""
        return (self.h.square() / (2 * self.spread.square())).flatten()


def transition(path: Path, t: Tensor, earlier: Tensor, eta: float, ndim: int) -> Transition:
    """The step from times t to earlier (cleaner) times, (B,) each. eta 0: deterministic; 1: the true posterior's spread.

    spread = eta s' sqrt(1 - (a s' / (a' s))^2); on variance-preserving paths that is DDIM's sigma.
    """
    (a, s), (a_, s_) = path.coefficients(t, ndim), path.coefficients(earlier, ndim)
    spread = eta * s_ * (1 - (a * s_ / (a_ * s)).square()).clamp_min(0).sqrt()
    return Transition(a_ / a, torch.sqrt(s_.square() - spread.square()) - a_ * s / a, spread)
