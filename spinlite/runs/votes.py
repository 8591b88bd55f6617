"""Which pictures a person preferred: one of two of the same caption, by the base and by a round, seen without knowing which.

votes.jsonl       a vote a line: caption, round, and which picture was chosen ("base", "round" or "skip")
votes/win, lose   the two pictures of each choice and the caption: pairs as a method reads them that learns from given pairs
votes/learn.toml  a preset that learns from them: the run's own, with DPO or KTO, from the LoRA of its best round
"""

import contextlib
import json
import math
import shutil
import time
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from spinlite.runs.disk import write_bytes

VOTES, PAIRS, PRESET = "votes.jsonl", "votes", "learn.toml"
METHODS = {"dpo": {"name": "dpo"}, "kto": {"name": "kto", "fakes": "given"}}  # that learn from given pairs
CHANCE = 1.96  # standard deviations: 95 of 100 intervals hold the truth


@dataclass(frozen=True)
class Vote:
    """One choice. `chosen` is "base", "round" or "skip"; `pair` is the name of its files, "" if it was skipped."""

    caption: str
    round: int
    chosen: str
    pair: str = ""
    seed: int | None = None  # of a prompt of the user's own


def read_votes(folder: Path) -> list[Vote]:
    """The votes of a run, oldest first. Lines that are none are left out."""
    votes = []
    with contextlib.suppress(OSError):
        for line in (folder / VOTES).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                votes.append(Vote(**json.loads(line)))
    return votes


def vote(folder: Path, caption: str, round_: int, chosen: str, base: Path, picture: Path, seed: int | None = None) -> None:
    """Keep a choice, and the two pictures (PNG) as a pair if one was preferred."""
    votes, pair = read_votes(folder), ""
    if chosen != "skip":
        pair = f"{time.time_ns()}"
        won, lost = (picture, base) if chosen == "round" else (base, picture)
        for side, path in (("win", won), ("lose", lost)):
            (folder / PAIRS / side).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / PAIRS / side / f"{pair}.png")
        (folder / PAIRS / "win" / f"{pair}.txt").write_text(caption, encoding="utf-8")
        with contextlib.suppress(OSError):  # whoever asks for it is told
            write_preset(folder)
    _write(folder, [*votes, Vote(caption, round_, chosen, pair, seed)])


def undo(folder: Path) -> Vote | None:
    """Take the last vote back, and return it; None if there is none."""
    votes = read_votes(folder)
    if not votes:
        return None
    _write(folder, votes[:-1])
    _forget(folder, votes[-1:])
    return votes[-1]


def forget_votes_after(folder: Path, k: int) -> None:
    """Remove the votes on rounds after k, which will be made again."""
    votes = read_votes(folder)
    if gone := [vote for vote in votes if vote.round > k]:
        _write(folder, [vote for vote in votes if vote.round <= k])
        _forget(folder, gone)


def standing(votes: Iterable[Vote]) -> dict[int, str]:
    """How each round stands, in words: "you preferred round 2 to the base in 14 of 17 (likely 59 to 94 % of the time)"."""
    votes, words = list(votes), {}
    for k in sorted({vote.round for vote in votes}):
        chosen = [vote.chosen for vote in votes if vote.round == k and vote.chosen != "skip"]
        if chosen:
            won = chosen.count("round")
            low, high = interval(won, len(chosen))
            likely = f"likely {100 * low:.0f} to {100 * high:.0f} % of the time"
            words[k] = f"you preferred round {k} to the base in {won} of {len(chosen)} ({likely})"
    return words


def interval(won: int, of: int) -> tuple[float, float]:
    """Between which shares the true share lies with 95 % confidence (E. B. Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    share, square = won / of, CHANCE**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = CHANCE / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def write_preset(folder: Path, method: str = "dpo") -> Path:
    """Write the preset that learns from the pairs by one of METHODS, and return its path.

    The pairs are all its data, so nothing of the run's [data] stays. Raises OSError if the run has no settings.
    """
    tree = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
    lora = folder.absolute() / "export" / f"{folder.name}.safetensors"
    tree["about"] = f"learns which pictures you preferred, from the best round of {folder.name}"
    tree["data"] = {"folder": str(folder.absolute() / PAIRS)}
    tree["method"] = METHODS[method]
    tree["run"] = tree.get("run", {}) | {"rounds": 1}
    tree["model"] = tree.get("model", {}) | ({"init_lora": str(lora)} if lora.is_file() else {})
    path = folder / PAIRS / PRESET
    write_bytes(path, tomli_w.dumps(tree).encode())
    return path


def _write(folder: Path, votes: list[Vote]) -> None:
    text = "".join(json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in votes)
    write_bytes(folder / VOTES, text.encode())


def _forget(folder: Path, votes: Iterable[Vote]) -> None:
    for vote in votes:
        for name in (f"win/{vote.pair}.png", f"win/{vote.pair}.txt", f"lose/{vote.pair}.png") if vote.pair else ():
            (folder / PAIRS / name).unlink(missing_ok=True)
