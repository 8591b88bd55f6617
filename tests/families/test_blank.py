"""Random weights of real size: the shapes are the published ones, and a base without its weights computes all the same."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from spinlite.config.settings import Model
from spinlite.families.blank import KNOWN, Blank
from spinlite.families.family import Picture
from spinlite.families.kinds import KINDS
from spinlite.families.load import load_family
from spinlite.memory.device import Device, Levers
from spinlite.training.animation import strip

CPU = Device(torch.device("cpu"), "test")
SIZES = {"sd1": (859_520_964, 512), "sd2": (865_910_724, 768), "sdxl": (2_567_463_684, 1024)}  # weights of the UNet; px


@pytest.mark.parametrize("kind", SIZES)
def test_a_blank_base_has_the_published_size_and_takes_no_memory_on_meta(kind: str):
    weights, side = SIZES[kind]
    with torch.device("meta"):
        base = load_family(Model(base=f"blank:{kind}"), Device(torch.device("meta"), "test", Levers("bf16")))
    assert sum(p.numel() for p in base.net.parameters()) == weights
    assert base.size == (side, side) and all(p.is_meta and p.dtype == torch.bfloat16 for p in base.net.parameters())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_base_that_is_here_computes_with_random_weights(tiny_bases: Path, kind: str):
    base = load_family(Model(base=f"blank:{tiny_bases / kind}"), CPU)
    cond = base.encode_captions(["a cat", ""])
    latents = base.encode_pictures([Picture(Image.new("RGB", base.size), base.size, (0, 0))] * 2)["x0"]
    with torch.no_grad():
        predicted = base.denoise(latents, torch.tensor([3, 900]), cond)
    assert 0.01 < predicted.std() < 100 and predicted.isfinite().all()
    assert [strip(picture).size for picture in base.decode(latents)] == [base.size] * 2
    assert base.base_hash != load_family(Model(base=str(tiny_bases / kind)), CPU).base_hash


def test_the_known_hub_ids_name_kinds_that_exist():
    assert {Blank(kind).kind for kind in KNOWN.values()} <= set(KINDS)
