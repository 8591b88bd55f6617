"""The kinds of base model: one record each. A new kind is a line here and its own files. Nothing here imports torch."""

import difflib
from collections.abc import Mapping
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.families.anima_kinds import ANIMA
from spinlite.families.flux2_kinds import KLEIN_4B, KLEIN_9B
from spinlite.families.motion_kinds import ANIMATED, ANIMATEDIFF
from spinlite.families.record import Kind, Record
from spinlite.families.unet_kinds import SD1, SD2, SDXL
from spinlite.families.wan_kinds import WAN
from spinlite.families.zimage_kinds import Z_IMAGE

KINDS: dict[Kind, Record] = {
    "sd1": SD1, "sd2": SD2, "sdxl": SDXL, "klein-4b": KLEIN_4B, "klein-9b": KLEIN_9B, "anima": ANIMA,
    "z-image": Z_IMAGE, "wan": WAN, ANIMATED: ANIMATEDIFF,
}  # fmt: skip
FAMILIES = {record.family: record.made_by for record in KINDS.values()} | {"toy": "families.toy:Toy"}  # by model.family
FIX_UNSUPPORTED = f"use one of these models or a finetune: {', '.join(record.title for record in KINDS.values())}"


def check_family(family: str) -> None:
    """Raises SpinliteError if there is no such model.family."""
    if family not in ("auto", *FAMILIES):
        near = difflib.get_close_matches(family, FAMILIES, 1)
        problem = f"there is no model.family = {family!r}; it is auto or one of {', '.join(FAMILIES)}"
        raise SpinliteError(problem, fix=f"add --set model.family={near[0] if near else 'auto'}")


def flow_kind(name: str, net: Mapping[str, Any]) -> Kind:
    """The kind of flow model whose network has these settings. Raises SpinliteError if there is none."""
    found = [kind for kind, record in KINDS.items() if record.is_folder and record.is_folder(net)]
    if not found:
        what = f"{name} is a {net.get('_class_name', 'model')} of a kind or size that spinlite does not train"
        raise SpinliteError(what, fix=FIX_UNSUPPORTED)
    return found[0]
