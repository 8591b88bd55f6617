"""Measures what reading data costs, on a folder made for it: python -m spinlite.bench.data

The times say little about another machine. The ratios do: they compare calls that took turns in one process.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from spinlite.config.load import load_settings
from spinlite.config.rounds import with_pictures
from spinlite.config.settings import Data, Memory, Model
from spinlite.data.buckets import Grid
from spinlite.data.encoded import Encoded
from spinlite.data.looks import WORKERS, decode_all, read_headers
from spinlite.data.survey import survey
from spinlite.families.latents import scaling_of
from spinlite.families.open import open_checkpoint
from spinlite.families.toy import Toy
from spinlite.families.vae import PIXELS, encode_images
from spinlite.memory import device
from spinlite.plan.make import card_for, make_plan
from spinlite.plan.plan import HELDOUT, TRAIN, cache_folder
from spinlite.runs.store import Store

LATENT, PROMPT = (4, 64, 64), (77, 768)  # shapes of SD 1.5
ITEMS, BATCH = 2000, 16  # latents that are read, and latents per batch
DECODED = 300  # pictures of 1024x768 that are decoded
PICTURES, SMALL = 12, 128  # pictures that are encoded, at a side of so many px on a CPU
TURNS = 3


def folder(place: Path, count: int, size: tuple[int, int]) -> Path:
    """Make a folder of `count` JPEGs with captions. Bytes after the end of each JPEG make every file different."""
    place.mkdir(parents=True)
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(file, "JPEG", quality=90)
    for i in range(count):
        (place / f"{i:06}.jpg").write_bytes(file.getvalue() + i.to_bytes(8, "big"))
        (place / f"{i:06}.txt").write_text(f"a photograph of the place {i % 1000}", encoding="utf-8")
    return place


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a call takes."""
    start = clock()
    call()
    return clock() - start


def decoding(place: Path) -> dict[str, float]:
    """Pictures per second: headers, all pixels, and all pixels by Pillow alone with as many threads."""
    paths = sorted(place.glob("*.jpg"))

    def alone() -> None:
        def load(path: Path) -> None:
            with Image.open(path) as image:
                image.convert("RGB")

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(load, paths))

    calls = {"headers": lambda: read_headers(paths), "full": lambda: decode_all(paths, "white"), "pillow": alone}
    took = [{name: seconds(call) for name, call in calls.items()} for _ in range(TURNS)]
    return {name: len(paths) / min(turn[name] for turn in took) for name in calls}


def validating(place: Path, cache: Path) -> dict[str, float]:
    """Seconds to check and encode a folder at first, and again when nothing has changed."""
    model = Toy(Model(base="0"), device.choose_device(Memory()))  # its encoder costs nothing
    settings, grid = Data(folder=str(place)), Grid(Toy.size, Toy.step)

    def prepare() -> None:
        pictures = survey(settings, cache=cache, grid=grid)
        Encoded(model, pictures.train + pictures.heldout, cache, 64, lambda done, of: None, settings)

    time.sleep(2.5)  # a file's time stamp is trusted once it is old enough
    first, start = seconds(prepare), time.process_time()
    again = min(seconds(prepare) for _ in range(TURNS))
    return {"first": first, "again": again, "computed": (time.process_time() - start) / TURNS}


def encoding(place: Path, cache: Path) -> dict[str, float]:
    """Pictures per second from files to the store, and by the VAE alone from pixels: SD 1.5's, with random weights."""
    where = device.choose_device(Memory())
    on_card = where.device.type == "cuda"
    side, clock = (512, time.perf_counter) if on_card else (SMALL, time.process_time)
    vae: Any = open_checkpoint("blank:sd1").load("vae", where.dtype).to(where.device).eval()
    model, settings = Toy(Model(base="0"), where), Data(folder=str(place))
    model.size = side, side
    encode: Any = lambda pictures, _: {"x0": encode_images(vae, [p.image for p in pictures], scaling_of(vae))}  # noqa: E731
    model.encode_pictures = encode
    pictures = survey(settings, cache=cache, grid=Grid(model.size, 8))
    pixels = torch.randn(len(pictures.train), 3, side, side).to(where.device, vae.dtype).split(max(1, PIXELS // side**2))

    def whole(turn: int) -> None:
        Encoded(model, pictures.train, cache / str(turn), BATCH, lambda done, of: None, settings)

    def alone(turn: int) -> None:
        with torch.no_grad():
            torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in pixels]).cpu()

    took = [[seconds(lambda call=call, turn=turn: call(turn), clock) for call in (whole, alone)] for turn in range(TURNS + 1)]
    best = [min(times) for times in zip(*took[1:], strict=True)]
    return {name: len(pictures.train) / least for name, least in zip(("whole", "alone"), best, strict=True)}


def reading(place: Path) -> float:
    """Latents with captions per second that the store gives, in random order."""
    store = Store(place)
    with store:
        for start in range(0, ITEMS, BATCH):
            keys = [str(i) for i in range(start, start + BATCH)]
            store.add(keys, {"x0": torch.randn(BATCH, *LATENT), "prompt": torch.randn(BATCH, *PROMPT).half()})
    order = random.Random(0).sample(range(ITEMS), ITEMS)

    def read(kept: Store) -> None:
        for start in range(0, ITEMS, BATCH):
            kept.get([str(i) for i in order[start : start + BATCH]])

    kept = Store(place)
    return ITEMS / min(seconds(lambda: read(kept)) for _ in range(TURNS))


def consumed(preset: str) -> float:
    """Latents per second that learning needs, by the plan of a preset for its card."""
    settings = with_pictures(load_settings(preset), TRAIN, HELDOUT)
    plan = make_plan(preset, settings, card_for(settings, None), TRAIN, HELDOUT, cache_folder())
    return 2 * settings.learn.length * settings.learn.batch / plan.seconds["learn"]


def figures(count: int, preset: str) -> Iterator[tuple[str, float]]:
    """(name, figure) of everything, as soon as it is measured."""
    with tempfile.TemporaryDirectory() as made:
        rates = decoding(folder(Path(made) / "large", DECODED, (1024, 768)))
        yield "headers read, pictures/s", rates["headers"]
        yield "decoded, pictures/s", rates["full"]
        yield "decoded, against Pillow alone with as many threads", rates["full"] / rates["pillow"]
        times = validating(folder(Path(made) / "many", count, (256, 256)), Path(made) / "cache")
        yield f"{count} pictures at first, s", times["first"]
        yield f"{count} pictures again, unchanged, s", times["again"]
        yield "of these computed, not waited for others, s", times["computed"]
        yield "memory of this process at the most, GB", _peak()
        rates = encoding(folder(Path(made) / "encoded", PICTURES, (1024, 768)), Path(made) / "encoded-cache")
        yield "encoded by SD 1.5's VAE, from files to the store, pictures/s", rates["whole"]
        yield "encoded, against the VAE alone", rates["whole"] / rates["alone"]
        rate, need = reading(Path(made) / "store"), consumed(preset)
        yield "read from the store, latents with captions/s", rate
        yield f"learned from by {preset}, latents/s (plan)", need
        yield "read, against learned from", rate / need


def _peak() -> float:
    """Peak memory of this process in GB of 10^9 bytes: from psutil on Windows, from `resource` elsewhere."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m spinlite.bench.data", description="Measure what reading data costs.")
    parser.add_argument("--pictures", type=int, default=10_000, metavar="N", help="pictures of the folder that is read twice")
    parser.add_argument("--preset", default="sd15-24gb", help="compare the store with the speed of this preset")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    measured = {}
    for name, figure in figures(options.pictures, options.preset):
        measured[name] = figure
        print(f"{figure:12.3g}  {name}", file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
