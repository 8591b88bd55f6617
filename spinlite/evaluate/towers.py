"""Whether a picture shows what its caption says: two small towers on frozen networks, as `spinlite.study.towers` trains them.

The picture's tower stands on EfficientNet-Lite0's features (`spinlite.evaluate.kid`), the caption's on the sentence embeddings
of all-MiniLM-L6-v2, which are kept in the file for the captions that are judged.

Shapes: n pictures with captions, features (n, 1280), embeddings (n, 384), both towers' outputs (n, 128) of unit length.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinlite.config.presets import PACKAGE
from spinlite.errors import SpinliteError
from spinlite.runs.store import read_tensors, write_tensors

PICTURE, CAPTION, HIDDEN, OUT = 1280, 384, 256, 128
WITHIN = 10  # the right caption is "found" where no more than so many fit the picture as well
KEPT = PACKAGE / "demo" / "towers.safetensors"


class Towers:
    """Both towers, and the embeddings of captions that it has met."""

    def __init__(self, picture: nn.Module, caption: nn.Module, known: dict[str, Tensor]) -> None:
        self._picture, self._caption, self._known = picture.eval(), caption.eval(), known

    @torch.no_grad()
    def score(self, pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Features (n, 1280) with their captions -> "alignment", 100 x cosine, and "found", 1 or 0: (n,) each.

        A caption is found where it is among the 10 of these n that fit its picture best.
        """
        texts = torch.stack([self._known[caption] for caption in captions])
        cosines = F.normalize(self._picture(pictures), dim=1) @ F.normalize(self._caption(texts), dim=1).T
        better = (cosines > cosines.diag()[:, None]).sum(1)
        return {"alignment": 100 * cosines.diag(), "found": (better < WITHIN).double()}

    def knows(self, captions: Sequence[str]) -> bool:
        """Whether it can score these."""
        return all(caption in self._known for caption in captions)

    def save(self, path: Path) -> None:
        """As fp16."""
        parts = {"picture": self._picture, "caption": self._caption}
        tensors = {f"{name}.{key}": t.half() for name, part in parts.items() for key, t in part.state_dict().items()}
        names = list(self._known)
        known = torch.stack([self._known[name] for name in names]).half()
        write_tensors(path, tensors | {"known": known}, {"captions": json.dumps(names)})

    @staticmethod
    def load(path: Path = KEPT) -> "Towers":
        """Raises SpinliteError where the file is not there."""
        if not path.is_file():
            problem = f"{path}, which judges alignment, is not there"
            raise SpinliteError(problem, fix="python -m spinlite.study --materials DIR makes it")
        tensors, about = read_tensors(path)
        parts = {name: tower(width) for name, width in (("picture", PICTURE), ("caption", CAPTION))}
        for name, part in parts.items():
            part.load_state_dict({key: tensors[f"{name}.{key}"].float() for key in part.state_dict()})
        known = dict(zip(json.loads(about["captions"]), tensors["known"].float(), strict=True))
        return Towers(parts["picture"], parts["caption"], known)


def tower(width: int) -> nn.Sequential:
    """An MLP of one hidden layer: (n, width) -> (n, 128)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.3), nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, OUT))
