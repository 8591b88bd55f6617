"""Whether a picture has the look of the demo's pictures: a small classifier on the judge's network.

Its classes are Fluent 3D pictures, clean on white, and all else that the demo's base has seen. `spinlite.demo.look` trains it
on things that neither the demo's data nor the judge's pictures show.

KID's features say what a picture shows; a hand shows in how its patches are made. So the classifier sees the mean and deviation
over places of the channels of four early stages of the same network.

Shapes: n pictures; what is seen of each, S = 1600, are KID's 1280 features and, behind them, those 320 figures.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from spinlite.config.presets import PACKAGE
from spinlite.errors import SpinliteError
from spinlite.evaluate.kid import FEATURES, features
from spinlite.runs.store import read_tensors, write_tensors

STAGES = (0, 2, 4, 7)  # blocks of EfficientNet-Lite0, of 16, 24, 40 and 80 channels
STYLES, HIDDEN = 2 * (16 + 24 + 40 + 80), 128
KEPT = PACKAGE / "demo" / "look.safetensors"


class Look:
    """The classifier, and what it gets right of pictures that it was not trained on."""

    def __init__(self, net: nn.Module, accuracy: float) -> None:
        self._net, self.accuracy = net.eval(), accuracy

    @torch.no_grad()
    def score(self, seen: Tensor) -> Tensor:
        """1 for each picture that has the look, else 0: (n, S) -> (n,), fp64."""
        return (self._net(seen[:, FEATURES:]).squeeze(1) > 0).double()

    def save(self, path: Path = KEPT) -> None:
        write_tensors(path, self._net.state_dict(), {"accuracy": f"{self.accuracy:.4f}"})

    @staticmethod
    def load(path: Path = KEPT) -> "Look":
        """Raises SpinliteError where the file is not there."""
        if not path.is_file():
            raise SpinliteError(f"{path}, which judges the look, is not there", fix="install spinlite again")
        tensors, about = read_tensors(path)
        net = head()
        net.load_state_dict(tensors)
        return Look(net, float(about["accuracy"]))


def styles(pictures: Sequence[Image.Image]) -> Tensor:
    """What judges see of RGB pictures: (n, S). Raises SpinliteError where the judge's network is missing."""
    return features(pictures, STAGES)


def head() -> nn.Module:
    """An MLP of one hidden layer on normalised figures, above 0 for the look: (n, 320) -> (n, 1)."""
    return nn.Sequential(
        nn.BatchNorm1d(STYLES, affine=False), nn.Dropout(0.3), nn.Linear(STYLES, HIDDEN), nn.GELU(), nn.Dropout(0.3),
        nn.Linear(HIDDEN, 1),
    )  # fmt: skip
