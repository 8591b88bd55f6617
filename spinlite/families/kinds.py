"""The kinds of base model: one record each. A new kind is a line here and its own files. Nothing here imports torch."""

import difflib

from spinlite.errors import SpinliteError
from spinlite.families.record import Kind, Record
from spinlite.families.unet_kinds import SD1, SD2, SDXL

KINDS: dict[Kind, Record] = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
FAMILIES = {record.family: record.made_by for record in KINDS.values()} | {"toy": "families.toy:Toy"}  # by model.family


def check_family(family: str) -> None:
    """Raises SpinliteError if there is no such model.family."""
    if family not in ("auto", *FAMILIES):
        near = difflib.get_close_matches(family, FAMILIES, 1)
        problem = f"there is no model.family = {family!r}; it is auto or one of {', '.join(FAMILIES)}"
        raise SpinliteError(problem, fix=f"add --set model.family={near[0] if near else 'auto'}")
