"""The scorers that need no download: KID to the prompts' real pictures, and the demo's judges of look and alignment."""

from functools import cache

import torch
from torch import Tensor

from spinlite.evaluate.kid import FEATURES, contrasts
from spinlite.evaluate.look import Look, styles
from spinlite.evaluate.scorer import Column, Ground, Network, Seen
from spinlite.evaluate.towers import Towers

LITE = Network("lite0", lambda weights: lambda pictures, prompts: {"seen": styles(pictures)})


def _kid(seen: Seen, ground: Ground) -> Tensor:
    return contrasts(seen["seen"][..., :FEATURES], ground.reals["seen"][:, :FEATURES])


def _spread(seen: Seen, ground: Ground) -> Tensor:
    """How far samples of two prompts are from each other; it falls where samples grow alike: (n, n)."""
    shown = seen["seen"][..., :FEATURES].double().unbind(1)
    return torch.stack([torch.cdist(one, one, compute_mode="donot_use_mm_for_euclid_dist") for one in shown]).mean(0) / 1000


def _look(seen: Seen, ground: Ground) -> Tensor:
    return 100 * torch.stack([_judge_of_look().score(one) for one in seen["seen"].unbind(1)], 1)


def _alignment(seen: Seen, ground: Ground) -> Tensor:
    each = [_judge_of_captions().score(one[:, :FEATURES], ground.prompts.texts) for one in seen["seen"].unbind(1)]
    return torch.stack([one["alignment"] for one in each], 1)


COLUMNS = (
    Column("kid", "lite0", _kid, "KID x 1000: distance to the prompts' real pictures as a set", "set", True, "pictures"),
    Column("look", "lite0", _look, "share of pictures in the look of the demo's, in percent", asks="demo"),
    Column("alignment", "lite0", _alignment, "whether a picture shows its caption, 100 x cosine", asks="demo"),
    Column("spread", "lite0", _spread, "mean distance between pictures of different prompts", "set"),
)


@cache
def _judge_of_look() -> Look:
    return Look.load()


@cache
def _judge_of_captions() -> Towers:
    return Towers.load()
