"""Figures from CLIP-L's embeddings alone: both LAION aesthetic scores, and how different the pictures of one prompt are.

The aesthetic heads are chains of linear layers without activations, so that each folds into one vector and a bias.

Shapes: n prompts with s seeds, embeddings (n, s, 768) of unit length.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.evaluate.scorer import Column, Ground, Needs, Seen
from spinlite.evaluate.weights import Place, read

PLACES = {
    "aes_v1": (Place("shunk031/aesthetics-predictor-v1-vit-large-patch14", "model.safetensors", 1.2),),
    "aes_v2": (Place("birder-project/aesthetic-predictor", "openai-clip_aesthetic-predictor.pt", 0.004),),
}
PARTS = ("weight", "bias", "predictor.", "layers.")  # of files with such a head: v1, v1 with its tower, v2


def fold(tensors: Mapping[str, Tensor], names: list[str]) -> tuple[Tensor, Tensor]:
    """Linear layers one after the other, as one: (weight (1, d), bias (1,)), in fp64."""
    weight, bias = (tensors[f"{names[0]}{part}"].double() for part in ("weight", "bias"))
    for name in names[1:]:
        w, b = tensors[f"{name}weight"].double(), tensors[f"{name}bias"].double()
        weight, bias = w @ weight, w @ bias + b
    return weight, bias


def layers_of(tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    """The names of a chain's layers in order: "PREFIX0.", "PREFIX2.", …"""
    found = {int(key.removeprefix(prefix).partition(".")[0]) for key in tensors if key.startswith(prefix)}
    return [f"{prefix}{i}." for i in sorted(found)]


def head(path: Path) -> tuple[Tensor, Tensor]:
    """The folded head in a file: (weight (1, 768), bias (1,)). Raises SpinliteError if it holds none."""
    tensors = read(path, PARTS)
    names = layers_of(tensors, "layers.") or [n for n in ("", "predictor.") if f"{n}weight" in tensors]
    if not names:
        raise SpinliteError(f"{path} holds no aesthetic head", fix="name the head's own file, or leave out --weights")
    return fold(tensors, names)


def _needs(name: str) -> Needs:
    return {name: PLACES[name]}


def _aesthetic(name: str) -> Callable[[Seen, Ground], Tensor]:
    def score(seen: Seen, ground: Ground) -> Tensor:
        weight, bias = _head_at(ground.weights.find(name, PLACES[name]))
        return seen["embedding"].double() @ weight[0] + bias

    return score


@cache
def _head_at(path: Path) -> tuple[Tensor, Tensor]:
    return head(path)


def distance(embeddings: Tensor) -> Tensor:
    """1 - the mean cosine of the pictures of each prompt with each other: (n, s, d) -> (n,)."""
    count = embeddings.shape[1]
    cosines = embeddings.double() @ embeddings.double().transpose(1, 2)
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))


def vendi(embeddings: Tensor) -> Tensor:
    """How many different pictures each prompt seems to have, from 1 to s: (n, s, d) -> (n,).

    exp of the entropy of the eigenvalues of the cosines / s (Friedman & Dieng 2022, arXiv 2210.02410, eq. 3).
    """
    cosines = embeddings.double() @ embeddings.double().transpose(1, 2)
    shares = torch.linalg.eigvalsh(cosines / embeddings.shape[1]).clamp_min(0)
    return torch.special.entr(shares).sum(1).exp()


COLUMNS = (
    Column("aes_v1", "clip_l14", _aesthetic("aes_v1"), "LAION aesthetic v1, a linear head", needs=_needs("aes_v1")),
    Column("aes_v2", "clip_l14", _aesthetic("aes_v2"), "LAION aesthetic v2 (sac+logos+ava1)", needs=_needs("aes_v2")),
    Column(
        "diversity_l14", "clip_l14", lambda seen, ground: distance(seen["embedding"]),
        "1 - mean cosine of a prompt's pictures with each other", "prompt", asks="seeds",
    ),
    Column(
        "vendi_l14", "clip_l14", lambda seen, ground: vendi(seen["embedding"]),
        "Vendi score: how many different pictures a prompt has", "prompt", asks="seeds",
    ),
)  # fmt: skip
