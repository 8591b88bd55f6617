"""Every LoRA key, on the real networks' shapes: the lists say what every program loads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from spinlite.families.diffusion import TARGETS
from spinlite.families.record import CONFIGS
from spinlite.families.sd import StableDiffusion
from spinlite.families.sdxl import StableDiffusionXL
from spinlite.maths.paths import Path as NoisePath

LISTS = Path(__file__).parents[1] / "families" / "modules"


@pytest.mark.parametrize(("kind", "family"), [("sd15", StableDiffusion), ("sdxl", StableDiffusionXL)])
def test_every_module_has_the_key_that_other_programs_look_for(kind: str, family: type):
    rows = [line.split("\t") for line in (LISTS / f"lora-{kind}.tsv").read_text(encoding="utf-8").splitlines()]
    unet: Any = UNet2DConditionModel
    with torch.device("meta"):
        net = unet.from_config(unet.load_config(CONFIGS / kind, subfolder="unet"))
    layers = [f"unet.{name}" for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    whole = {module: key for _, module, key in rows}
    of = SimpleNamespace(_kind="sdxl" if kind == "sdxl" else "sd1")
    assert {name: family.export_name(of, name, "kohya") for name in whole} == whole and set(layers) <= whole.keys()
    for targets, scopes in (("linear", {"lin"}), ("all", {"lin", "conv"})):
        taken = {name for name in layers if name.endswith(tuple(f".{target}" for target in TARGETS[targets]))}
        assert taken == {module for scope, module, _ in rows if scope in scopes}


@pytest.mark.parametrize(
    ("family", "kind", "prediction", "version", "architecture"),
    [
        (StableDiffusion, "sd1", "eps", "sd_v1", "stable-diffusion-v1/lora"),
        (StableDiffusion, "sd1", "v", "sd_v1_v", "stable-diffusion-v1/lora"),
        (StableDiffusion, "sd2", "eps", "sd_v2", "stable-diffusion-v2-512/lora"),
        (StableDiffusion, "sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        (StableDiffusionXL, "sdxl", "v", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_the_header_says_which_base_it_is_for(family: type, kind: str, prediction, version: str, architecture: str):
    made: Any = object.__new__(family)
    made._kind, made._clip_skip, made.size, made.path = kind, None, (512, 512), NoisePath(prediction, torch.ones(3))
    found = made.export_metadata()
    assert found["ss_base_model_version"] == version and found["modelspec.architecture"] == architecture
    assert found["ss_v2"] == str(kind == "sd2")
    assert found["modelspec.prediction_type"] == ("v" if prediction == "v" else "epsilon")
