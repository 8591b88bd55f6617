"""Where the preset files are. Nothing here imports torch."""

import re
import tomllib
from pathlib import Path

from spinlite.config.decode import decode
from spinlite.errors import SpinliteError

PACKAGE = Path(__file__).parents[1]  # the folder spinlite/
USUAL = "sdxl-12gb"  # the preset that messages suggest for one's own pictures


def shipped_presets() -> dict[str, Path]:
    """The files of the shipped presets by name, in order."""
    here = PACKAGE / "presets"  # in a wheel; a checkout has them beside the package
    folder = here if here.is_dir() else PACKAGE.parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=_natural)}


def _natural(path: Path) -> list[str | int]:
    """Sort numbers by value: 8gb before 12gb."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def preset_texts(preset: str) -> list[str]:
    """The TOML text of a preset and of every preset that it extends, itself first. Stops at a file that can't be read."""
    texts: list[str] = []
    path: Path | None = shipped_presets().get(preset) or Path(preset)
    while path and len(texts) < 100:
        try:
            text = decode(path.read_bytes(), str(path))
            parent = tomllib.loads(text).get("extends")
        except (OSError, ValueError, SpinliteError):
            return texts
        texts.append(text)
        path = (shipped_presets().get(parent) or path.parent / parent) if isinstance(parent, str) else None
    return texts
