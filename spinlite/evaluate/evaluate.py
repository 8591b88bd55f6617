"""Compares models on the same prompts and the same noise: draws, scores, and says who wins."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from spinlite.config.load import validate_settings
from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.evaluate import studio as studios
from spinlite.evaluate.compare import Figure, figures
from spinlite.evaluate.drawing import REALS, Drawn, describe_sampling, draw, samplers
from spinlite.evaluate.kid import off_diagonal
from spinlite.evaluate.looking import Shown, free_memory, look_at
from spinlite.evaluate.prompts import DEMO, HELDOUT, Prompts, read_prompts
from spinlite.evaluate.registry import JUDGES, NETWORKS, USUAL, columns, own_weights
from spinlite.evaluate.scorer import Column, Ground, Seen
from spinlite.evaluate.studio import Studio
from spinlite.evaluate.weights import Weights
from spinlite.memory.device import choose_device
from spinlite.progress import Watch
from spinlite.runs.run import Run

RECORDS = "the pictures of the prompts"


@dataclass(frozen=True)
class Request:
    """What to compare: runs and LoRA files, on which prompts, by which scorers."""

    runs: Sequence[Path]
    loras: Sequence[Path] = ()
    base: str = "demo"  # of LoRA files, if there is no run
    prompts: str | None = None  # None: the demo's judges for its scorers, else the run's unseen captions
    scorers: Sequence[str] = ()  # (): the usual ones
    rounds: str = "best"
    seeds: int = 1
    limit: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # given: one sampler; else the fakes' own and a good one
    weights: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A model by one sampler: its scores of each picture or prompt by column, and its figures."""

    drawn: Drawn
    scores: Mapping[str, Tensor]
    figures: Mapping[str, Figure]
    way: float | None = None  # of KID, from the base to real pictures through the VAE


@dataclass(frozen=True)
class Evaluation:
    """All rows, sampler by sampler, the base first; and what the real pictures have, if the prompts come with some."""

    prompts: Prompts
    columns: Sequence[Column]
    rows: Sequence[Row]
    reals: Row | None
    seeds: int
    model: str
    sampling: Sequence[Play]
    folder: Path


def evaluate(request: Request, folder: Path | None, watch: Watch) -> Evaluation:
    """Draw, score and compare. Pictures and what scorers saw are kept below `folder`, so that the same call goes on.

    Raises SpinliteError if the sources don't go together, a scorer does not fit the prompts, or weights are missing.
    """
    runs = [Run.open_existing(path) for path in request.runs]
    wanted = columns(request.scorers or _usual(runs, request.base))
    cache = runs[0].cache if runs else studios.CACHE
    word = request.prompts or (DEMO if {c.name for c in wanted} <= set(JUDGES) | {"spread"} else HELDOUT)
    prompts = read_prompts(word, runs[0] if runs else None, cache, request.limit)
    _refuse(wanted, prompts, word, request.seeds)
    weights = Weights(choose_device(runs[0].memory if runs else None), own_weights(request.weights), watch.say)
    needs = {name: places for c in wanted for of in (NETWORKS[c.network], c) for name, places in of.needs.items()}
    for name, places in needs.items():
        weights.find(name, places)  # now, not after hours of drawing
    place = folder or default_folder(request, prompts.name)
    drawn, model, sampling = _draw(request, runs, prompts, cache, place / "pictures", watch)
    scores = _score(wanted, drawn, prompts, weights, place / "seen", watch)
    rows, reals = _rows(wanted, drawn, scores)
    return Evaluation(prompts, wanted, rows, reals, request.seeds, model, sampling, place)


def default_folder(request: Request, prompts: str) -> Path:
    """Where an evaluation is kept if nobody says otherwise: in the first run's folder, or in one named after the LoRA."""
    first = request.runs[0] if request.runs else request.loras[0].with_suffix("")
    return first / "evaluate" / prompts


def _usual(runs: Sequence[Run], base: str) -> Sequence[str]:
    return JUDGES if (runs[0].settings.model.base if runs else base) == "demo" else USUAL


def _refuse(wanted: Sequence[Column], prompts: Prompts, word: str, seeds: int) -> None:
    """Raises SpinliteError for a column that can't be had of these prompts."""
    for column in wanted:
        if column.asks == "demo" and word != DEMO:
            raise SpinliteError(f"the scorer {column.name} knows the demo's pictures alone", fix=f"add --prompts {DEMO}")
        if column.asks == "pictures" and (not prompts.pictured or len(prompts.records) < 8):
            fix = "add --prompts FOLDER, with 8 or more pictures and their captions"
            raise SpinliteError(f"the scorer {column.name} compares with real pictures, and {word} has too few", fix=fix)
        if column.asks == "seeds" and seeds < 2:
            raise SpinliteError(f"the scorer {column.name} compares pictures of one prompt", fix="add --seeds 4")


def _draw(
    request: Request, runs: Sequence[Run], prompts: Prompts, cache: Path, folder: Path, watch: Watch
) -> tuple[list[Drawn], str, list[Play]]:
    """(what was drawn, the base in words, the samplers). One base is in memory at a time, and none when this returns."""
    drawn: dict[tuple[str, str], Drawn] = {}
    base_hash, title, sampling = "", "", list[tuple[Play, bool]]()
    for open_studio in _studios(request, runs, cache):
        studio = open_studio()
        if not base_hash:
            base_hash, title, sampling = (
                studio.base.base_hash,
                studio.base.title,
                _samplings(studio, request.sampling, bool(runs)),
            )
        elif studio.base.base_hash != base_hash:
            problem = f"{studio.artists[-1].name} belongs to another base model than the others"
            raise SpinliteError(problem, fix="compare models of one base at a time")
        for one in draw(studio, prompts, sampling, request.seeds, folder, watch):
            if drawn.setdefault((one.model, one.sampler), one).files != one.files:
                raise SpinliteError(f"two of the models are called {one.model}", fix="rename one of the runs or files")
        del studio
        free_memory()
    return list(drawn.values()), title, [play for play, _ in sampling]


def _studios(request: Request, runs: Sequence[Run], cache: Path) -> Iterator[Callable[[], Studio]]:
    """What opens each studio; the first begins with the base."""
    for run in runs:
        yield partial(studios.open_run, run, request.rounds)
    model = runs[0].settings.model if runs else Model(base=request.base)
    play = runs[0].settings.drawn if runs else Play()
    device = choose_device(runs[0].memory if runs else None)
    for path in [*([] if runs else [None]), *request.loras]:
        remember = {"remember": runs[0].remember_cache} if runs else {}
        yield partial(studios.open_file, path, model, device, play, cache, **remember)


def _samplings(studio: Studio, asked: Mapping[str, Any], fakes: bool) -> list[tuple[Play, bool]]:
    """The fakes' own sampler, if there are `fakes`, and a good one, or the one that was asked for; each with whose it is."""
    if not asked:
        return list(samplers(studio.base, studio.play))[0 if fakes else 1 :]
    tree = {"play": studio.play.model_dump() | dict(asked) | {"points": 0, "start": 1.0}}
    sampling = validate_settings(tree).play
    return [(sampling, fakes and describe_sampling(sampling) == describe_sampling(studio.play))]


def _score(
    wanted: Sequence[Column], drawn: Sequence[Drawn], prompts: Prompts, weights: Weights, folder: Path, watch: Watch
) -> dict[int, dict[str, Tensor]]:
    """The scores of everything that was drawn, by its place in `drawn` and by column."""
    scores: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(drawn))}
    for name in dict.fromkeys(column.network for column in wanted):
        mine = [column for column in wanted if column.network == name]
        shown = {str(i): Shown(one.files, prompts.texts) for i, one in enumerate(drawn)}
        if any(column.asks == "pictures" for column in mine):
            shown[RECORDS] = Shown([[r.path for r in prompts.records]], prompts.texts)
        seen: dict[str, Seen] = look_at(NETWORKS[name], shown, weights, folder, watch)
        reals = {key: value[:, 0] for key, value in seen.pop(RECORDS, {}).items()}
        ground = Ground(prompts, reals, weights)
        for place, one in seen.items():
            scores[int(place)] |= {column.name: column.score(one, ground) for column in mine if _fits(column, one)}
    return scores


def _fits(column: Column, seen: Seen) -> bool:
    """Whether a column can be had: the real pictures are one a prompt, so that they have no diversity within it."""
    return column.asks != "seeds" or next(iter(seen.values())).shape[1] > 1


def _rows(
    wanted: Sequence[Column], drawn: Sequence[Drawn], scores: Mapping[int, dict[str, Tensor]]
) -> tuple[list[Row], Row | None]:
    """(the rows, sampler by sampler with the base first; the row of the real pictures, if they are there)."""
    every = {i: {c.name: c.per_prompt(scores[i][c.name]) for c in wanted if c.name in scores[i]} for i in range(len(drawn))}
    place = next((i for i, one in enumerate(drawn) if one.model == REALS), None)
    floor = off_diagonal(every[place]["kid"]) if place is not None and "kid" in every[place] else None
    rows: list[Row] = []
    for sampler in dict.fromkeys(one.sampler for one in drawn if one.model != REALS):
        mine = [i for i, one in enumerate(drawn) if one.sampler == sampler and one.model != REALS]
        for i in mine:
            base = every[mine[0]] if i != mine[0] else None
            way = _way(base["kid"], every[i]["kid"], floor) if base and floor is not None else None
            rows.append(Row(drawn[i], scores[i], figures(wanted, every[i], base), way))
    if place is None:
        return rows, None
    have = [column for column in wanted if column.name in every[place]]
    return rows, Row(drawn[place], scores[place], figures(have, every[place], None))


def _way(before: Tensor, now: Tensor, floor: float) -> float:
    start = off_diagonal(before)
    return (start - off_diagonal(now)) / (start - floor)
