"""The words that people type for scorers, and the columns and networks that they stand for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
USUAL = ("pickscore", "hps", "imagereward", "aes_v2", "clip")  # those whose weights are new to each other, 9 GB in all


def own_weights(given: Mapping[str, Path]) -> dict[str, Path]:
    """The user's own files, by the names under which they are asked for. Raises SpinliteError for another name."""
    known = sorted({name for one in (*NETWORKS.values(), *COLUMNS.values()) for name in one.needs})
    found: dict[str, Path] = {}
    for word, path in given.items():
        names = WORDS.get(word, (word,))
        if len(names) > 1 or names[0] not in known:
            raise SpinliteError(f"there are no weights called {word!r}", fix=f"name one of these: {', '.join(known)}")
        found[names[0]] = path
    return found


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
