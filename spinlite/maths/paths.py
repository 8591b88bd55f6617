"""Forward processes: how a clean sample becomes noise, and what a network predicts on the way.

x0 is a clean sample, eps unit noise, x_t the noised sample at time t. x0, eps, x_t, prediction: (B, ...); u, t: (B,).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "v", "flow"]


@dataclass(frozen=True)
class Path:
    """x_t = a_t x0 + s_t eps, and a network that predicts c_x x0 + c_e eps.

    | prediction | (c_x, c_e)  | a_t, s_t                                  | t                  |
    |------------|-------------|-------------------------------------------|--------------------|
    | eps        | (0, 1)      | sqrt(alpha_bar[t]), sqrt(1 - alpha_bar[t]) | index, 0 is clean  |
    | v          | (-s_t, a_t) | the same; Salimans & Ho 2022, App. D      | index              |
    | flow       | (-1, 1)     | 1 - t, t; Liu et al. 2022                 | 0 clean .. 1 noise |

    x_t and the prediction are both linear in (x0, eps), so `invert` solves a 2 x 2 system with det = a c_e - s c_x.
    """

    prediction: Prediction
    alpha_bar: Tensor | None = None  # (T,), DDPM's cumulative alpha-bar; None for flow
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)  # alpha_bar on each device

    def __post_init__(self) -> None:
        if (self.alpha_bar is None) != (self.prediction == "flow"):
            raise ValueError("eps and v need alpha_bar; flow has none")

    @property
    def timestep_scale(self) -> int:
        """diffusers' scheduler timesteps = t * timestep_scale."""
        return 1000 if self.alpha_bar is None else 1

    def times(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) -> times t."""
        if self.alpha_bar is None:
            return u.clamp_min(1e-4)  # at t = 0 the flow target carries no signal about x0
        return (u * len(self.alpha_bar)).long().clamp_max(len(self.alpha_bar) - 1)  # u may round to 1 in fp32

    def share(self, t: Tensor) -> Tensor:
        """Times t as numbers from 0 (clean) to 1 (noise); `times` gives t again."""
        return t if self.alpha_bar is None else (t + 0.5) / len(self.alpha_bar)

    def nearest(self, t: Tensor) -> Tensor:
        """The path's times nearest to those of a sampler, which may lie between two steps of the schedule."""
        return t if self.alpha_bar is None else t.round().long().clamp(0, len(self.alpha_bar) - 1)

    def coefficients(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """(a_t, s_t), each (B, 1, ...) with ndim dimensions, in fp32."""
        if self.alpha_bar is None:
            a, s = 1 - t.float(), t.float()
        else:
            if t.device not in self._placed:  # once: a card that gets it makes the host wait
                self._placed[t.device] = self.alpha_bar.to(t.device)
            bar = self._placed[t.device][t].float()
            a, s = bar.sqrt(), (1 - bar).sqrt()
        shape = (-1,) + (1,) * (ndim - 1)
        return a.view(shape), s.view(shape)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x0 + s_t eps."""
        a, s = self.coefficients(t, x0.ndim)
        return a * x0 + s * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The right prediction for (x0, eps) at t: c_x x0 + c_e eps."""
        c_x, c_e = self._mix(*self.coefficients(t, x0.ndim))
        return c_x * x0 + c_e * eps

    def invert(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The (x0, eps) that give this x_t and this prediction. With eps prediction it is undefined where a_t = 0."""
        a, s = self.coefficients(t, x_t.ndim)
        c_x, c_e = self._mix(a, s)
        det = a * c_e - s * c_x
        return (c_e * x_t - s * prediction) / det, (a * prediction - c_x * x_t) / det

    def _mix(self, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        match self.prediction:
            case "eps":
                return torch.zeros_like(a), torch.ones_like(a)
            case "v":
                return -s, a
            case "flow":
                return -torch.ones_like(a), torch.ones_like(a)
