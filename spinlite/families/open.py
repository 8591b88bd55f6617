"""From a path or hub id to a base model that is not loaded yet."""

from pathlib import Path

from spinlite.config.presets import PACKAGE
from spinlite.families.blank import BLANK, Blank
from spinlite.families.checkpoint import Checkpoint, locate
from spinlite.families.kinds import KINDS
from spinlite.families.single_file import SingleFile


def open_checkpoint(base: str) -> Checkpoint:
    """A base model by its path or hub id; "demo" is the one that ships with spinlite. Raises SpinliteError if it can't be used.

    "blank:" and a kind ("sd1", "sd2", "sdxl") or another base gives the same networks with random weights.
    """
    if base.startswith(BLANK):
        shape = base.removeprefix(BLANK)
        return Blank(shape, None if shape in KINDS else open_checkpoint(shape))
    place = base if base == "demo" else locate(base, "model.base")
    if place.lower().endswith(".safetensors"):
        return SingleFile(Path(place))
    from spinlite.families.folder import Folder  # with diffusers, which takes seconds to import

    if base == "demo":
        return Folder(base, str(PACKAGE / "demo" / "base"))
    return Folder(base, place, on_hub=not Path(place).is_dir())
