"""The shapes that are computed are those of diffusers' networks."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from spinlite.families.kinds import KINDS
from spinlite.families.motion_kinds import is_motion
from spinlite.families.names import module_shapes
from spinlite.families.shapes import unet_keys, unet_shapes
from tests.families import tiny


@pytest.mark.parametrize("kind", [kind for kind, record in KINDS.items() if record.net == "unet"])
def test_computed_shapes_are_those_of_the_published_network(kind: str):
    unet: Any = UNet2DConditionModel
    with torch.device("meta"):
        built = module_shapes(unet.from_config(unet.load_config(KINDS[kind].folder, subfolder="unet")))
    computed = {module: shape for module, shape in KINDS[kind].lora.shapes().items() if not is_motion(module)}
    assert computed == built
    with torch.device("meta"):
        whole = unet.from_config(unet.load_config(KINDS[kind].folder, subfolder="unet"))
    config = KINDS[kind].config("unet")
    assert sorted(unet_keys(config)) == sorted(whole.state_dict())
    assert [m for m in computed if m.endswith("attn1.to_q")] == [m for m in built if m.endswith("attn1.to_q")]


@pytest.mark.parametrize("kind", tiny.UNETS)
def test_they_are_those_of_other_sizes_too(kind: str):
    net = UNet2DConditionModel(sample_size=8, norm_num_groups=8, layers_per_block=2, **tiny.UNETS[kind])
    assert dict(unet_shapes(net.config)) == module_shapes(net)  # pyright: ignore[reportArgumentType]
