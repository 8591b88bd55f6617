"""The prompts that models are compared on: the run's unseen captions, a set by name from the hub, a text file, or pictures.

A prompt is a record. With a real picture it is drawn in that picture's shape; without one, in the model's own size.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Data
from spinlite.data.captions import read_text
from spinlite.data.records import Record
from spinlite.data.survey import grid_of, survey
from spinlite.errors import SpinliteError
from spinlite.runs.disk import write_bytes
from spinlite.runs.files import fingerprint
from spinlite.runs.run import Run

JUDGE = PACKAGE / "demo" / "judge"
DEMO, HELDOUT = "demo", "heldout"
STYLES = ("anime", "concept-art", "paintings", "photo")
OFFLINE = "check the network, or write the prompts into a text file, one a line, and name it: --prompts prompts.txt"


@dataclass(frozen=True)
class Prompts:
    """What is drawn: a record for each prompt."""

    name: str
    records: Sequence[Record]
    pictured: bool  # whether each has a real picture, which KID compares with
    limited: bool = False  # whether these are not all prompts of the set

    @property
    def texts(self) -> list[str]:
        return [r.caption for r in self.records]


def _list_of(repo: str, files: Sequence[str]) -> list[str]:
    """The prompts of JSON files, lists of texts, of a data set on the hub."""
    from huggingface_hub import hf_hub_download

    paths = [Path(hf_hub_download(repo, file, repo_type="dataset")) for file in files]
    return [text for path in paths for text in json.loads(path.read_text(encoding="utf-8"))]


def _column_of(repo: str, split: str, column: str) -> list[str]:
    """A column of a data set on the hub. Its rows are streamed, so that other splits and pictures are not downloaded."""
    from datasets import load_dataset

    return [row[column] for row in load_dataset(repo, split=split, streaming=True).select_columns([column])]


def _pickapic(version: int, split: str) -> Callable[[], list[str]]:
    return partial(_column_of, f"yuvalkirstain/pickapic_v{version}_no_images", f"{split}_unique", "caption")


HPD = "ymhao/HPDv2"
SETS: dict[str, tuple[int, Callable[[], list[str]]]] = {  # name -> (how many prompts it has, reads them from the hub)
    "parti": (1632, partial(_column_of, "nateraw/parti-prompts", "train", "Prompt")),
    "hps": (3200, partial(_list_of, HPD, [f"benchmark/{style}.json" for style in STYLES])),
    **{f"hps-{style}": (800, partial(_list_of, HPD, [f"benchmark/{style}.json"])) for style in STYLES},
    **{f"pickapic-v{v}-{split}": (500, _pickapic(v, split)) for v in (1, 2) for split in ("validation", "test")},
    "drawbench": (200, partial(_column_of, "sayakpaul/drawbench", "train", "Prompts")),
}


def read_prompts(word: str, run: Run | None, cache: Path, limit: int | None = None) -> Prompts:
    """The prompts that a word stands for, or `limit` of them, spread over all.

    "demo": the pictures that judge the demo; "heldout": the run's unseen captions; a name of SETS; a text file with a prompt a
    line; a folder of pictures with captions. Raises SpinliteError if it is none of these, or can't be read.
    """
    found = _read(word, run, cache)
    if limit and limit < len(found.records):
        return Prompts(found.name, found.records[:: len(found.records) // limit][:limit], found.pictured, limited=True)
    return found


def _read(word: str, run: Run | None, cache: Path) -> Prompts:
    path = Path(word).expanduser()
    if word == DEMO:
        return Prompts(DEMO, read_pictures(JUDGE), True)
    if word == HELDOUT:
        return Prompts(HELDOUT, _heldout(run), True)
    if word in SETS:
        return Prompts(word, as_records(_kept(word, cache)), False)
    if path.is_dir():
        return Prompts(path.resolve().name, read_pictures(path), True)
    if path.is_file():
        lines = [line.strip() for line in read_text(path, str(path)).splitlines()]
        return Prompts(path.stem, as_records(_some([line for line in lines if line], word)), False)
    names = ", ".join((DEMO, HELDOUT, *SETS))
    raise SpinliteError(f"there is no prompt set, file or folder {word!r}", fix=f"name a file, or one of these: {names}")


def as_records(texts: Iterable[str]) -> list[Record]:
    """A record for each prompt; its key names its noise. A prompt that a set holds twice is drawn from another noise."""
    counts = Counter[str]()
    records = []
    for text in texts:
        records.append(Record(Path(), text, fingerprint(text, *[counts[text]] * (counts[text] > 0))))
        counts[text] += 1
    return records


def read_pictures(folder: Path) -> list[Record]:
    """The pictures with captions of a folder, in order of their names. Raises SpinliteError if there are fewer than 8."""
    found = survey(Data(folder=str(folder)))
    records = sorted(found.train + found.heldout, key=lambda r: r.path)
    if len(records) < 8:
        raise SpinliteError(f"{folder} holds {len(records)} usable pictures; 8 is the least", fix="add more pictures to it")
    return records


def _heldout(run: Run | None) -> list[Record]:
    if run is None:
        fix = "name a prompt set, such as --prompts parti, or a text file"
        raise SpinliteError("a LoRA file has no unseen captions of its own", fix=fix)
    pairs = run.settings.build_method().fakes == "given"
    return survey(run.settings.data, pairs, run.cache, grid=grid_of(run.settings)).heldout


def _kept(name: str, cache: Path) -> list[str]:
    """The prompts of a set; they are downloaded once, and then kept in the cache."""
    path = cache / "prompts" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    rows, fetch = SETS[name]
    try:
        texts = fetch()
    except Exception as error:  # of whichever library is used for connections and files
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpinliteError(f"the prompt set {name} can't be read from the hub: {said}", fix=OFFLINE) from None
    if len(texts) != rows:
        raise SpinliteError(f"the prompt set {name} has {len(texts)} prompts, not its {rows}", fix=OFFLINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(texts, ensure_ascii=False).encode())
    return texts


def _some(texts: list[str], word: str) -> list[str]:
    if not texts:
        raise SpinliteError(f"{word} holds no prompt", fix="write a prompt on each line")
    return texts
