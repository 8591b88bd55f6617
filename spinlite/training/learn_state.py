"""Where the learning of a round stands, and the automatic beta of that moment."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from spinlite.maths.auto_beta import automatic_beta, running_mean
from spinlite.methods.registry import Method
from spinlite.training.batches import Errors
from spinlite.training.guards import Figures
from spinlite.training.step import margins


@dataclass
class LearnState:
    """Where a round's learning stands. With the policy and the optimizer it is all that a resume needs."""

    update: int = 0  # how many were made
    norm: float | None = None  # running mean of gradient norms
    margin: float | None = None  # running mean of |weight x margin|, for the automatic beta
    level: float | None = None  # running mean of weight x opponent's error on real, for the automatic beta
    recent: list[Figures] = field(default_factory=list)  # of the last updates, for the guards

    def method(self, method: Method, aim: float) -> Method:
        """The method with the automatic beta of this moment. With aim = 0, or before the first update, it is unchanged."""
        if not aim or "beta" not in {f.name for f in fields(method)} or self.margin is None or self.level is None:
            return method
        return replace(method, beta=automatic_beta(self.margin, self.level, aim))  # pyright: ignore[reportCallIssue]

    def track_margins(self, errors: Errors, weight: Tensor | None) -> None:
        """Update the running means that the automatic beta is made of."""
        if "opponent_fake" not in errors:
            return
        weight = torch.ones_like(errors["policy_real"]) if weight is None else weight.to(errors["policy_real"].device)
        margin = weight * margins(errors)
        self.margin = running_mean(self.margin, margin.abs())
        self.level = running_mean(self.level, weight * errors["opponent_real"])
