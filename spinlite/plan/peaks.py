"""Peak memory of every shipped preset, for `spinlite presets`. `python -m spinlite.plan.peaks` writes peaks.json anew."""

import json
from pathlib import Path

from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Settings
from spinlite.plan.card import GIB, Card
from spinlite.plan.make import card_for, make_plan
from spinlite.plan.plan import HELDOUT, PEAKS, TRAIN, cache_folder

COMPUTER = Card("any computer", "cpu", 16 * GIB, "fp32", 1e11, 1e10, 1e-6, False)


def card_of_preset(settings: Settings) -> Card:
    """The card that a preset is made for, or a computer without a card."""
    return card_for(settings, None) if settings.memory.vram else COMPUTER


def peak(name: str, cache: Path | None) -> int:
    """Peak memory of a shipped preset on its card, in bytes."""
    settings = load_settings(name)
    return make_plan(name, settings, card_of_preset(settings), TRAIN, HELDOUT, cache).peak


if __name__ == "__main__":
    peaks = {name: peak(name, cache_folder()) for name in shipped_presets()}
    PEAKS.write_text(json.dumps(peaks, indent=1) + "\n", encoding="utf-8")
