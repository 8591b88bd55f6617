"""What a scorer is: a network that looks at pictures once, and columns that turn what it saw into figures.

Several columns may share a network: one pass of CLIP serves the CLIP score, both aesthetic scores and the diversity. What a
network saw of a picture is kept on disk, so that a column can be added later, and a network has to be in memory only once.

Shapes: n prompts with s seeds each; what was seen of a model's pictures is {name: (n, s, ...)}.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL.Image import Image
from torch import Tensor

from spinlite.evaluate.kid import Estimate, estimate, estimate_mean
from spinlite.evaluate.prompts import Prompts
from spinlite.evaluate.weights import Place, Weights

Seen = dict[str, Tensor]
Needs = Mapping[str, Sequence[Place]]  # files of weights: what each is called, and where on the hub it may be
Looks = Callable[[Sequence[Image], Sequence[str]], Seen]  # pictures with their prompts -> {name: (pictures, ...)}


@dataclass(frozen=True)
class Network:
    """A network that looks. `load` brings it into memory, from the user's own file or the hub's cache."""

    name: str
    load: Callable[[Weights], Looks]
    needs: Needs = field(default_factory=dict)


@dataclass(frozen=True)
class Ground:
    """What scores depend on beside the pictures: the prompts, and what the network saw of their real pictures, (n, ...)."""

    prompts: Prompts
    reals: Seen
    weights: Weights  # for columns with a small head of their own


Score = Callable[[Seen, Ground], Tensor]


@dataclass(frozen=True)
class Column:
    """A figure. Its name holds its version, so that columns of different versions can't be taken for each other.

    `of` says what `score` returns: "picture" is (n, s), "prompt" is (n,), and "set" is a matrix (n, n) whose mean over pairs of
    different prompts is the figure (KID).
    """

    name: str
    network: str
    score: Score
    about: str  # one line for people
    of: Literal["picture", "prompt", "set"] = "picture"
    lower: bool = False  # whether lower is better
    asks: Literal["", "pictures", "demo", "seeds"] = ""  # real pictures with the prompts, those of the demo, or several seeds
    needs: Needs = field(default_factory=dict)  # beside those of its network

    def per_prompt(self, scores: Tensor) -> Tensor:
        """(n, s) -> (n,), the mean over a prompt's pictures; other scores as they are."""
        return scores.double().mean(1) if self.of == "picture" else scores.double()

    def estimate(self, per_prompt: Tensor) -> Estimate:
        """The figure of all prompts, with its 95 % interval; of a difference of two models it is the paired one."""
        return estimate(per_prompt) if self.of == "set" else estimate_mean(per_prompt)


def plain(name: str) -> Score:
    """The score that a network itself gives a picture."""
    return lambda seen, ground: seen[name]
