"""Which round would each rule have chosen, and how good was it? Over all cells that were measured after several rounds."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spinlite.runs.best import best_round, latest_near
from spinlite.study.results import BASE

Line = dict[str, Any]


def _lowest(figure: str) -> Callable[[Sequence[Line]], Line]:
    return lambda rounds: min(rounds, key=lambda line: line["signals"][figure])


def _events(rounds: Sequence[Line]) -> list[dict[str, Any]]:
    """What a run that judged these rounds alone would know of them."""
    ordered = sorted(rounds, key=lambda line: line["round"])
    return [line["signals"] | {"round": line["round"], "previous_real": line["signals"]["base_real"]} for line in ordered]


def _best(rounds: Sequence[Line]) -> Line | None:
    """The round that the run's own rule chooses; none: the base."""
    chosen = best_round(_events(rounds))
    return next((line for line in rounds if line["round"] == chosen), None)


def _latest_near(rounds: Sequence[Line]) -> Line:
    chosen = latest_near(_events(rounds))["round"]
    return next(line for line in rounds if line["round"] == chosen)


RULES: dict[str, Callable[[Sequence[Line]], Line | None]] = {
    "a run's own rule: the next one, of rounds whose error on unseen pictures is hardly above the base's": _best,
    "energy distance of samples: the latest that chance may put above the lowest": _latest_near,
    "energy distance of samples: the lowest": _lowest("distance"),
    "error on unseen pictures: the lowest": _lowest("policy_real"),
    "deviation of the samples' channels: the nearest": _lowest("away_deviation"),
    "the last round": lambda rounds: max(rounds, key=lambda line: line["round"]),
}


def choices(lines: Sequence[Line]) -> dict[str, list[tuple[float, bool]]]:
    """Rule -> for each cell (how much higher the KID of its round is than the best one's, whether chance may explain that).

    The base is one of the rounds that may be best. Chance explains a difference if 0 lies within its paired 95 % interval, over
    captions.
    """
    cells: dict[tuple[str, int], list[Line]] = defaultdict(list)
    base = next((line for line in lines if line["arm"] == BASE), None)
    for line in lines:
        if "distance" in line.get("signals", {}):
            cells[line["arm"], line["seed"]].append(line)
    found: dict[str, list[tuple[float, bool]]] = {rule: [] for rule in RULES}
    for rounds in cells.values():
        if len(rounds) < 2:
            continue
        for rule, choose in RULES.items():
            if chosen := choose(rounds) or base:
                found[rule].append(_regret(chosen, [*rounds, *([base] if base else [])]))
    return found


def _regret(chosen: Line, rounds: Sequence[Line]) -> tuple[float, bool]:
    best = min(rounds, key=lambda line: line["measures"]["kid"]["value"])
    mine, least = (line["measures"]["kid"] for line in (chosen, best))
    apart = torch.tensor(mine["resamples"], dtype=torch.float64) - torch.tensor(least["resamples"], dtype=torch.float64)
    return mine["value"] - least["value"], apart.quantile(0.025).item() <= 0


def stopping_table(lines: Sequence[Line]) -> list[list[str]]:
    """The rows of the page's table; its head alone where no cell has been measured after several rounds."""
    rows = [["the round is chosen by", "cells", "within the noise of the best, %", "KID above the best, mean", "at worst"]]
    for rule, found in choices(lines).items():
        if found:
            above = [kid for kid, _ in found]
            share = 100 * sum(near for _, near in found) / len(found)
            rows.append([rule, str(len(found)), f"{share:.0f}", f"{sum(above) / len(above):.0f}", f"{max(above):.0f}"])
    return rows
