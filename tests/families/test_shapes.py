"""The shapes that are computed are those of diffusers' networks."""

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from spinlite.families.kinds import CONFIGS, FOLDERS, KINDS, Kind
from spinlite.families.names import module_shapes
from spinlite.families.shapes import published_shapes, unet_keys, unet_shapes
from tests.families import tiny


@pytest.mark.parametrize("kind", KINDS)
def test_computed_shapes_are_those_of_the_published_network(kind: Kind):
    unet: Any = UNet2DConditionModel
    with torch.device("meta"):
        built = module_shapes(unet.from_config(unet.load_config(CONFIGS / FOLDERS[kind], subfolder="unet")))
    computed = published_shapes(kind)
    assert computed == built
    with torch.device("meta"):
        whole = unet.from_config(unet.load_config(CONFIGS / FOLDERS[kind], subfolder="unet"))
    config = json.loads((CONFIGS / FOLDERS[kind] / "unet" / "config.json").read_text(encoding="utf-8"))
    assert sorted(unet_keys(config)) == sorted(whole.state_dict())
    assert [m for m in computed if m.endswith("attn1.to_q")] == [m for m in built if m.endswith("attn1.to_q")]


@pytest.mark.parametrize("kind", tiny.UNETS)
def test_they_are_those_of_other_sizes_too(kind: str):
    net = UNet2DConditionModel(sample_size=8, norm_num_groups=8, layers_per_block=2, **tiny.UNETS[kind])
    assert dict(unet_shapes(net.config)) == module_shapes(net)  # pyright: ignore[reportArgumentType]
