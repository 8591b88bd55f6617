"""Published answers, for someone with the weights: `SPINLITE_KNOWN_ANSWERS=FOLDER pytest tests/evaluate/test_known.py`.

FOLDER holds the pictures that the scorers' authors published with their scores: ImageReward's assets/images/1.webp to 4.webp,
and HPSv2's hpsv2/assets/demo_image.jpg. Weights are taken from it too (HPS_v2_compressed.pt, HPS_v2.1_compressed.pt,
ImageReward.pt, BERT's vocab.txt), or from the hub's cache.
"""

import os
from pathlib import Path

import pytest

from spinlite.data.pictures import open_picture
from spinlite.evaluate.registry import NETWORKS
from spinlite.evaluate.weights import Weights
from spinlite.memory.device import choose_device

FOLDER = Path(os.environ.get("SPINLITE_KNOWN_ANSWERS", ""))
FILES = {"hps_v2.0": "HPS_v2_compressed.pt", "hps_v2.1": "HPS_v2.1_compressed.pt", "imagereward_v1": "ImageReward.pt"}
FILES |= {"bert": "vocab.txt"}
OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
# scorer, prompt, picture, score, how far off it may be: resizing has changed since 2023, and cards compute in fp16
ANSWERS = [
    *[("imagereward_v1", OCEAN, f"{i}.webp", score, 0.02) for i, score in enumerate((0.5812, 0.2745, -1.4132, -2.0296), 1)],
    ("hps_v2.0", "A cat with two horns on its head", "demo_image.jpg", 28.76, 0.5),
    ("hps_v2.1", "cat with horn", "demo_image.jpg", 28.8, 0.5),
]


@pytest.mark.skipif("SPINLITE_KNOWN_ANSWERS" not in os.environ, reason="needs weights of several GB")
@pytest.mark.parametrize(("scorer", "prompt", "picture", "score", "off"), ANSWERS)
def test_the_published_score_comes_out(scorer: str, prompt: str, picture: str, score: float, off: float):
    weights = Weights(choose_device(), {name: FOLDER / file for name, file in FILES.items() if (FOLDER / file).exists()})
    found = NETWORKS[scorer].load(weights)([open_picture(FOLDER / picture)], [prompt])["score"].item()
    assert found == pytest.approx(score, abs=off)
