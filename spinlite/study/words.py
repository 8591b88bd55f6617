"""Figures as they are written in the page."""

from spinlite.study.results import Estimate

MEASURES = {  # measure -> (heading, digits after the point, which way is better)
    "kid": ("KID", 0, -1),
    "look": ("looks like the pictures, %", 0, 1),
    "own kid": ("KID by the fakes' sampler", 0, -1),
    "own look": ("look by the fakes' sampler, %", 0, 1),
    "error": ("held-out error × 1000", 1, -1),
    "alignment": ("alignment", 1, 1),
    "found": ("caption found, %", 0, 1),
    "diversity": ("diversity", 2, 1),
    "coverage": ("coverage, %", 0, 1),
}
SCALED = {"error": 1000.0, "found": 100.0, "coverage": 100.0, "look": 100.0, "own look": 100.0}


def number(found: Estimate, measure: str) -> str:
    return f"{found.value * SCALED.get(measure, 1):.{MEASURES[measure][1]}f}"


def signed(found: Estimate | None, measure: str) -> str:
    """A difference with its interval; where 0 lies outside, bold if better, and marked ▼ if worse."""
    if not found:
        return ""
    one, interval = plain(found, measure).split(" ", 1)
    good = found.value * MEASURES[measure][2] > 0
    return f"**{one}** {interval}" if found.sure and good else f"{one} ▼ {interval}" if found.sure else f"{one} {interval}"


def plain(found: Estimate, measure: str) -> str:
    """A difference with its interval."""
    digits, scale = MEASURES[measure][1], SCALED.get(measure, 1)
    one, low, high = (f"{x * scale:+.{digits}f}".replace("-", "−") for x in (found.value, found.low, found.high))
    return f"{one} [{low}, {high}]"
