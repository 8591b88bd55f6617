"""model.resolution: pictures of another size than the base's own, from the buckets to the exported header."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from spinlite.config.load import validate_settings
from spinlite.config.settings import Model
from spinlite.data.buckets import Grid
from spinlite.data.pictures import resize_and_crop
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family, size_and_step
from spinlite.memory import device
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.animation import strip
from tests.toy import Quiet

CPU = device.Device(torch.device("cpu"), "a test")


@pytest.mark.parametrize(("base", "step"), [("sd1", 64), ("sd2", 64), ("sdxl", 64)])
def test_size_and_buckets_follow_the_resolution_and_the_step_does_not(base: str, step: int):
    for side in (512, 768, 832):
        assert size_and_step(Model(base=f"blank:{base}", resolution=side)) == ((side, side), step)
        shapes = Grid((side, side), step).shapes(10_000, 10_000)
        assert (side, side) in shapes and max(width * height for width, height in shapes) == side * side
        assert all(width % step == height % step == 0 for width, height in shapes)


@pytest.mark.parametrize(("side", "near"), [(500, 512), (700, 704), (20, 64)])
def test_a_resolution_that_the_network_cannot_halve_is_refused(side: int, near: int):
    with pytest.raises(
        SpinliteError, match=rf"model.resolution = {side} is not a multiple of 64.*\nfix: type --resolution {near}"
    ):
        size_and_step(Model(base="blank:sdxl", resolution=side))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_latents_pictures_and_size_conditioning_follow_the_resolution(kind: str, tiny_bases: Path):
    made, plain = (load_family(Model(base=str(tiny_bases / kind), resolution=side), CPU) for side in (128, None))
    assert made.size == (128, 128) and made.latent_shape == (4, 16, 16) and plain.latent_shape == (4, 8, 8)
    assert made.step == plain.step and made.base_hash == plain.base_hash
    encoded = made.encode_pictures([resize_and_crop(Image.new("RGB", (200, 150)), made.size)])
    assert encoded["x0"].shape == (1, *made.latent_shape)
    seen: list[dict[str, Tensor]] = []
    net: Any = made.net
    net.register_forward_pre_hook(lambda net, args, named: seen.append(named.get("added_cond_kwargs")), with_kwargs=True)
    with torch.no_grad():
        made.denoise(torch.zeros(1, *made.latent_shape), torch.tensor([5]), made.encode_captions(["a"]))
    if kind == "sdxl":
        assert encoded["time_ids"].tolist() == [[150, 200, 0, 21, 128, 128]]
        assert seen[0]["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]]
    assert strip(made.decode(torch.zeros(1, *made.latent_shape))[0]).size == (128, 128)
    assert made.export_metadata()["modelspec.resolution"] == "128x128"


def test_a_run_at_another_resolution_says_so_in_its_file(swatches: Path, tmp_path: Path):
    for path in sorted(swatches.iterdir())[12:]:  # keeps 6 pictures with their captions
        path.unlink()
    settings = validate_settings({
        "model": {"rank": 2, "resolution": 32}, "data": {"folder": str(swatches), "upscale": 4.0},
        "play": {"steps": 1, "guidance": 1.0}, "learn": {"updates": 1, "batch": 2},
        "judge": {"draws": 1, "prompts": 1, "stop": False}, "run": {"rounds": 1},
    })  # fmt: skip
    run = train(settings, tmp_path / "runs" / "small", Quiet()).run
    header = read_tensors(run.last_export_path if run.last_export_path.exists() else run.export_path)[1]
    assert header["modelspec.resolution"] == "32x32" and header["ss_resolution"] == "(32, 32)"
