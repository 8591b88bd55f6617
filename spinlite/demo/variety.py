"""The ways in which the web spoils a picture: what `web.py` names in its tables.

Every way takes pictures (B, C, H, W) in 0..1 and a generator, and returns as many; angles are in radians. Ways of the place
meet RGBA multiplied by its alpha, ways of the colour RGB without its ground, ways of the ground a white page to paint, ways
of the surface the whole picture.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Way = Callable[[Tensor, torch.Generator], Tensor]


def between(low: float, high: float, shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    """Evenly distributed in low..high."""
    return low + (high - low) * torch.rand(shape, generator=chance)


def either(count: int, chance: torch.Generator) -> Tensor:
    """1 or -1: (count,)."""
    return torch.randint(2, (count,), generator=chance) * 2.0 - 1


def moved(x: Tensor, size: Tensor, angle: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Scaled by `size`, turned by `angle`, its middle at (right, down) of -1..1: (B, C, H, W), (B,) each -> (B, C, H, W)."""
    cos, sin = angle.cos() / size, angle.sin() / size
    rows = torch.stack([cos, -sin, -(cos * right - sin * down), sin, cos, -(sin * right + cos * down)], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear" if bool((size < 0.7).any()) else "bicubic", align_corners=False).clamp(0, 1)


def settled(x: Tensor, chance: torch.Generator) -> Tensor:
    """As it is, but for a size of 0.94 to 1 and a place to fit: no two alike, and no worse for it."""
    size = between(0.94, 1, (len(x),), chance)
    right, down = (between(-1, 1, (len(x),), chance) * (1 - size) for _ in range(2))
    return moved(x, size, torch.zeros(len(x)), right, down)


def turned(x: Tensor, chance: torch.Generator) -> Tensor:
    """By 20 to 60 degrees either way."""
    angle = between(math.radians(20), math.radians(60), (len(x),), chance) * either(len(x), chance)
    still = torch.zeros(len(x))
    return moved(x, torch.full((len(x),), 0.9), angle, still, still)


def small(x: Tensor, chance: torch.Generator) -> Tensor:
    """0.45 to 0.65 of its size, anywhere in the frame."""
    size = between(0.45, 0.65, (len(x),), chance)
    right, down = (between(-1, 1, (len(x),), chance) * (1 - size) for _ in range(2))
    half = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0)  # what is scaled down is smoothed first
    return moved(half, size, torch.zeros(len(x)), right, down)


def cut(x: Tensor, chance: torch.Generator) -> Tensor:
    """1.3 to 1.7 of its size, its middle off the frame's by a third to a half of a side."""
    size = between(1.3, 1.7, (len(x),), chance)
    right, down = (between(0.25, 0.6, (len(x),), chance) * either(len(x), chance) for _ in range(2))
    return moved(x, size, torch.zeros(len(x)), right, down)


def recoloured(x: Tensor, chance: torch.Generator) -> Tensor:
    """Hues turned around the grey axis by 60 to 300 degrees."""
    angle = between(math.radians(60), math.radians(300), (len(x), 1, 1), chance)
    mean = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turned = mean + angle.cos() * (torch.eye(3) - mean) + angle.sin() * cross  # Rodrigues' formula about (1, 1, 1)
    return torch.einsum("bij,bjhw->bihw", turned, x).clamp(0, 1)


def grey(x: Tensor, chance: torch.Generator) -> Tensor:
    """Without colour."""
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)


def faded(x: Tensor, chance: torch.Generator) -> Tensor:
    """Half to three quarters of the way to a pale grey."""
    share = between(0.5, 0.75, (len(x), 1, 1, 1), chance)
    return x + share * (0.8 - x)


def colours(count: int, chance: torch.Generator) -> Tensor:
    """Strong colours of any hue, from dark to light: (count, 3, 1, 1)."""
    hue = between(0, 2 * math.pi, (count, 1), chance)
    level, depth = between(0.3, 0.7, (count, 1), chance), between(0.2, 0.4, (count, 1), chance)
    return (level + depth * (hue + torch.tensor([0.0, 2, 4]) * math.pi / 3).cos()).clamp(0, 1)[..., None, None]


def ramp(page: Tensor, chance: torch.Generator) -> Tensor:
    """0..1 across each page, in a direction of its own: (B, 3, H, W) -> (B, 1, H, W)."""
    towards, at = between(0, 2 * math.pi, (len(page), 1, 1), chance), torch.linspace(-0.5, 0.5, page.shape[-1])
    return (0.5 + (towards.cos() * at[None, None, :] + towards.sin() * at[None, :, None]) / math.sqrt(2))[:, None]


def coloured(page: Tensor, chance: torch.Generator) -> Tensor:
    """One strong colour."""
    return colours(len(page), chance).expand_as(page)


def graded(page: Tensor, chance: torch.Generator) -> Tensor:
    """From one colour to another."""
    first, second = colours(len(page), chance), colours(len(page), chance)
    return first + (second - first) * ramp(page, chance)


def striped(page: Tensor, chance: torch.Generator) -> Tensor:
    """Two colours in 4 to 8 stripes."""
    first, second = colours(len(page), chance), colours(len(page), chance)
    stripes = torch.randint(4, 9, (len(page), 1, 1, 1), generator=chance)
    return torch.where((ramp(page, chance) * stripes).floor() % 2 == 0, first, second)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur along both axes: (B, C, H, W) -> the same."""
    at = torch.arange(-6, 7).float()
    weights = (-at.square() / (2 * sigma**2)).exp()
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (6, 6, 0, 0), mode="replicate"), weights, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, 6, 6), mode="replicate"), weights.transpose(2, 3), groups=x.shape[1])


def blurred_much(x: Tensor, chance: torch.Generator) -> Tensor:
    """By 1.2 to 2 px, each its own."""
    share = between(0, 1, (len(x), 1, 1, 1), chance)
    return blurred(x, 1.2) * (1 - share) + blurred(x, 2.0) * share


def pixelated(x: Tensor, chance: torch.Generator) -> Tensor:
    """As 16 x 16 squares."""
    return F.interpolate(F.avg_pool2d(x, x.shape[-1] // 16), size=x.shape[-2:])


def noisy(x: Tensor, chance: torch.Generator) -> Tensor:
    """Grain of a deviation of 0.08 to 0.15, on each colour its own."""
    return (x + between(0.08, 0.15, (len(x), 1, 1, 1), chance) * torch.randn(x.shape, generator=chance)).clamp(0, 1)
