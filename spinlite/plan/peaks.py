"""What every shipped preset takes at the most, for `spinlite presets`: `python -m spinlite.plan.peaks` writes it anew."""

import json
from pathlib import Path

from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Settings
from spinlite.plan.card import GIB, Card
from spinlite.plan.make import card_for, make_plan
from spinlite.plan.plan import HELDOUT, PEAKS, TRAIN, cache_folder

COMPUTER = Card("any computer", "cpu", 16 * GIB, "fp32", 1e11, 1e10, 1e-6, False)


def card(settings: Settings) -> Card:
    """The card that a preset names, or a computer without one."""
    return card_for(settings, None) if settings.memory.vram else COMPUTER


def peak(name: str, shelf: Path | None) -> int:
    """Bytes that a shipped preset takes on its card."""
    settings = load_settings(name)
    return make_plan(name, settings, card(settings), TRAIN, HELDOUT, shelf).peak


if __name__ == "__main__":
    found = {name: peak(name, cache_folder()) for name in shipped_presets()}
    PEAKS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
