"""What the base has seen: every thing by three hands, some of it clean on white, most of it spoilt in some way.

Stable Diffusion has seen the whole web, the good and the bad, under captions that do not say which. This file is that web in
small: the tables below say who draws and what goes wrong how often; `variety.py` says how. `python -m spinlite.demo.make
--only web` draws a sheet of it.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from . import variety
from .materials import Code, Concept

# Hand          how often, of those that draw a thing
HANDS = {
    "Fluent 3D": 0.45,  # none of the 416 things of `fluent/` and `judge/`: those the base has never seen in this look
    "Noto": 0.30,
    "Twemoji": 0.25,
}
CLEAN = 0.30  # share of pictures that are as the hand drew them, on white
VARIANTS = 10  # of each thing by each hand

# A picture that is not clean goes through these four, and of each meets one row or none. One that met none gets another ground.
# way         how often, how
PLACE = {
    "turned": (0.10, variety.turned),  # by 20 to 60 degrees
    "small": (0.08, variety.small),  # 0.45 to 0.65 of its size, anywhere
    "cut": (0.08, variety.cut),  # too large for the frame, and off its middle
}
COLOUR = {
    "recoloured": (0.14, variety.recoloured),  # hues turned by 60 to 300 degrees
    "grey": (0.06, variety.grey),  # without colour
    "faded": (0.08, variety.faded),  # half of its contrast or less
}
GROUND = {
    "coloured": (0.40, variety.coloured),  # one strong colour
    "graded": (0.25, variety.graded),  # from one colour to another
    "striped": (0.07, variety.striped),  # two colours in turn
}
SURFACE = {
    "blurred": (0.08, variety.blurred_much),  # by 1.2 to 2 px
    "pixelated": (0.04, variety.pixelated),  # 16 x 16
    "noisy": (0.03, variety.noisy),  # grain of 0.08 to 0.15
}
STAGES = {"place": PLACE, "colour": COLOUR, "ground": GROUND, "surface": SURFACE}


@dataclass(frozen=True)
class Drawn:
    """A thing by one hand: which concept of a list, whose hand, its picture (4, 64, 64) uint8 RGBA."""

    concept: int
    hand: str
    picture: Tensor


def gallery(concepts: list[Concept], hands: dict[str, dict[Code, Tensor]], unseen: set[Code]) -> list[Drawn]:
    """Every concept by every hand that draws it, but none of `unseen` by Fluent's."""
    return [
        Drawn(i, name, pictures[concept.code])
        for i, concept in enumerate(concepts)
        for name, pictures in hands.items()
        if concept.code in pictures and not (name == "Fluent 3D" and concept.code in unseen)
    ]


def pick(rows: dict[str, tuple[float, variety.Way]], count: int, chance: torch.Generator) -> list[str]:
    """For each of `count` pictures the name of the row it meets, or "" for none."""
    names, shares = list(rows), torch.tensor([share for share, _ in rows.values()]).cumsum(0)
    met = torch.searchsorted(shares, torch.rand(count, generator=chance), right=True)
    return [[*names, ""][i] for i in met.tolist()]


def plan(count: int, chance: torch.Generator) -> list[dict[str, str]]:
    """What happens to each picture: stage -> row of that stage, with "" for nothing; the clean have "" everywhere."""
    met = {stage: pick(rows, count, chance) for stage, rows in STAGES.items()}
    shares = {name: (share / sum(s for s, _ in GROUND.values()), way) for name, (share, way) in GROUND.items()}
    grounds, lots = pick(shares, count, chance), torch.rand(count, generator=chance)
    plans = []
    for i in range(count):
        if lots[i] < CLEAN:
            plans.append(dict.fromkeys(STAGES, ""))
            continue
        one = {stage: rows[i] for stage, rows in met.items()}
        plans.append(one if any(one.values()) else one | {"ground": grounds[i] or next(iter(GROUND))})
    return plans


def contact(drawn: list[Drawn], count: int = 96) -> tuple[list[Image.Image], list[str]]:
    """Some of the web, and what happened to each picture."""
    chance = torch.Generator().manual_seed(0)
    some = [drawn[i] for i in torch.randperm(len(drawn), generator=chance)[:count].tolist()]
    plans = plan(len(some), chance)
    pictures = shown(torch.stack([one.picture for one in some]), plans, chance).permute(0, 2, 3, 1).contiguous()
    ways = [", ".join(name for name in one.values() if name) for one in plans]
    labels = [way or f"{each.hand}, clean" for way, each in zip(ways, some, strict=True)]
    size = (pictures.shape[2], pictures.shape[1])
    return [Image.frombytes("RGB", size, bytes(one.flatten().tolist())) for one in pictures], labels


class HandChooser:
    """Which hand shows a thing, by the shares of those that draw it."""

    def __init__(self, drawn: list[Drawn]) -> None:
        self._places: dict[int, list[int]] = {}
        for place, one in enumerate(drawn):
            self._places.setdefault(one.concept, []).append(place)
        self._shares = {i: torch.tensor([HANDS[drawn[place].hand] for place in at]) for i, at in self._places.items()}

    def choose(self, concepts: list[int], chance: torch.Generator) -> Tensor:
        """For each concept the place of one picture of it in the gallery: (B,)."""
        lots = [int(torch.multinomial(self._shares[i], 1, generator=chance)) for i in concepts]
        return torch.tensor([self._places[i][lot] for i, lot in zip(concepts, lots, strict=True)])


def shown(pictures: Tensor, plans: list[dict[str, str]], chance: torch.Generator) -> Tensor:
    """Pictures as the web shows them: (B, 4, 64, 64) RGBA -> (B, 3, 64, 64), uint8 both."""

    def stage(name: str, x: Tensor) -> Tensor:
        for row, (_, way) in STAGES[name].items():
            mine = torch.tensor([one[name] == row for one in plans])
            if mine.any():
                x[mine] = way(x[mine], chance)
        return x

    straight = pictures.float() / 255
    x = torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], 1)
    still = torch.tensor([not one["place"] for one in plans])
    if still.any():
        x[still] = variety.settled(x[still], chance)
    x = stage("place", x)
    alpha = x[:, 3:].clamp(0, 1)
    rgb = stage("colour", (x[:, :3] / alpha.clamp_min(1e-3)).clamp(0, 1))
    page = rgb * alpha + stage("ground", torch.ones_like(rgb)) * (1 - alpha)
    return (stage("surface", page).clamp(0, 1) * 255).round().to(torch.uint8)
