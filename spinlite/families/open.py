"""From a path or hub id to a base model that is not loaded yet."""

from collections.abc import Mapping
from pathlib import Path

from spinlite.config.presets import PACKAGE
from spinlite.config.settings import MOTION, Model
from spinlite.errors import SpinliteError
from spinlite.families.blank import BLANK, Blank
from spinlite.families.checkpoint import Checkpoint, locate, require_file
from spinlite.families.flow_files import FlowFiles
from spinlite.families.hub import list_files
from spinlite.families.kinds import KINDS
from spinlite.families.motion import Animated
from spinlite.families.motion_kinds import ANIMATED
from spinlite.families.single_file import SingleFile, read_header

NET = "transformer"  # the part of a flow model that learns, in diffusers' layout


def open_checkpoint(base: str, others: Mapping[str, str] | None = None) -> Checkpoint:
    """A base model by its path or hub id; "demo" is the one that ships with spinlite. Raises SpinliteError if it can't be used.

    "blank:" and a kind ("sd1", "sdxl", "klein-4b", …) or another base gives the same networks with random weights. `others`
    gives the places of parts that are not in the base's file: "vae", "text_encoder", "motion".
    """
    given = dict(others or {})
    motion = given.pop("motion", None)
    if base == BLANK + ANIMATED:
        base, motion = f"{BLANK}sd1", motion or BLANK + MOTION
    checkpoint = _open(base, given)
    return Animated(checkpoint, motion) if motion else checkpoint


def _open(base: str, others: Mapping[str, str]) -> Checkpoint:
    if base.startswith(BLANK):
        shape = base.removeprefix(BLANK)
        return Blank(shape, None if shape in KINDS else _open(shape, others))
    place = base if base == "demo" else locate(base, "model.base")
    if place.lower().endswith(".safetensors"):
        return _open_file(Path(place), others)
    from spinlite.families.folder import Folder  # with diffusers, which takes seconds to import

    if base == "demo":
        return Folder(base, str(PACKAGE / "demo" / "base"))
    on_hub = not Path(place).is_dir()
    if f"{NET}/config.json" in (list_files(place) or ()) if on_hub else (Path(place) / NET / "config.json").is_file():
        from spinlite.families.flow_folder import FlowFolder

        _refuse_others(base, others, "vae", "text_encoder")
        return FlowFolder(base, place, NET, on_hub)
    _refuse_others(base, others, "text_encoder")
    return Folder(base, place, on_hub)


def _refuse_others(base: str, others: Mapping[str, str], *parts: str) -> None:
    """Raises SpinliteError for a part that the settings place elsewhere, and that is read from the base alone."""
    if wrong := next((part for part in parts if part in others), None):
        problem = f"model.{wrong} = {others[wrong]!r} would not be used: {base} has its own"
        raise SpinliteError(problem, fix=f"add --set model.{wrong}=none")


def open_base(model: Model) -> Checkpoint:
    """The base of [model] settings, with the places of other parts that they give. Raises as `open_checkpoint`."""
    return open_checkpoint(model.base, others_of(model))


def others_of(model: Model) -> dict[str, str]:
    """Parts that the settings place elsewhere than in the base's file."""
    given = {"vae": model.vae, "text_encoder": model.text_encoder, "motion": model.motion}
    return {part: place for part, place in given.items() if place}


def _open_file(path: Path, others: Mapping[str, str]) -> Checkpoint:
    require_file(path)
    shapes, metadata = read_header(path)
    for kind, record in KINDS.items():
        if record.is_file and record.is_file(shapes, metadata):
            return FlowFiles(path, kind, shapes, others)
    _refuse_others(path.name, others, "text_encoder")
    return SingleFile(path)
