"""Where presets lie. Nothing here imports torch."""

import re
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # the folder spinlite/


def shipped_presets() -> dict[str, Path]:
    """Shipped presets by name, in order."""
    here = PACKAGE / "presets"  # in a wheel; in a checkout they stand beside the package
    folder = here if here.is_dir() else PACKAGE.parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=_natural)}


def _natural(path: Path) -> list[str | int]:
    """Numbers count as such: 8gb, 12gb."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def preset_texts(preset: str) -> list[str]:
    """What a preset and those it extends say, itself first; as far as that can be read."""
    found: list[str] = []
    path: Path | None = shipped_presets().get(preset) or Path(preset)
    while path and len(found) < 100:
        try:
            text = path.read_text(encoding="utf-8-sig")
            parent = tomllib.loads(text).get("extends")
        except (OSError, ValueError):
            return found
        found.append(text)
        path = (shipped_presets().get(parent) or path.parent / parent) if isinstance(parent, str) else None
    return found
