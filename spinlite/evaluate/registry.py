"""The words that people type for scorers, and the columns and networks that they stand for."""

from collections.abc import Sequence

from spinlite.errors import SpinliteError
from spinlite.evaluate import clips, heads, imagereward, offline
from spinlite.evaluate.scorer import Column

NETWORKS = {network.name: network for network in (offline.LITE, *clips.NETWORKS, imagereward.NETWORK)}
COLUMNS = {column.name: column for column in (*offline.COLUMNS, *clips.COLUMNS, *imagereward.COLUMNS, *heads.COLUMNS)}
WORDS = {  # what is typed -> columns; a column's own name may be typed too
    "pickscore": ("pickscore_v1",),
    "hps": ("hps_v2.1",),
    "imagereward": ("imagereward_v1",),
    "aesthetic": ("aes_v2", "aes_v1"),
    "clip": ("clip_l14",),
    "clip_h": ("clip_h14",),
    "diversity": ("diversity_l14", "vendi_l14"),
}
JUDGES = ("kid", "look", "alignment")  # of the demo
USUAL = ("pickscore", "hps", "hps_v2.0", "imagereward", "aesthetic", "clip")


def columns(words: Sequence[str]) -> list[Column]:
    """The columns that words stand for, in their order. Raises SpinliteError for a word that is none."""
    names: list[str] = []
    for word in words:
        found = WORDS.get(word, (word,) if word in COLUMNS else ())
        if not found:
            known = ", ".join([*WORDS, *(name for name in COLUMNS if not any(name in of for of in WORDS.values()))])
            raise SpinliteError(f"there is no scorer {word!r}", fix=f"name some of these: {known}")
        names += found
    return [COLUMNS[name] for name in dict.fromkeys(names)]
