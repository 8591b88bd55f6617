"""Z-Image: captions, latents, samples and target against diffusers' own pipeline; its LoRA files; what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers as convert
from torch.testing import assert_close

from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.write import write_lora
from spinlite.families.family import Family
from spinlite.families.flow_layout import original_tensors
from spinlite.families.kinds import KINDS
from spinlite.families.load import require_base, token_counter
from spinlite.families.names import module_shapes
from spinlite.lora.apply import applied
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import Pair
from spinlite.training.animation import strip
from spinlite.training.play import sample
from tests.families import tiny, tiny_zimage
from tests.families.flows import CAPTIONS, SIDE, batch_of, load, pictures, random_lora, renamed, require_velocity


@pytest.fixture
def family(flow_configs: Path) -> Family:
    return load(flow_configs / "z-image")


@pytest.fixture(scope="module")
def pipeline(flow_bases: Path) -> Any:
    pipe: Any = ZImagePipeline.from_pretrained(str(flow_bases / "z-image"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_captions_latents_and_samples_are_those_of_the_pipeline(family: Family, pipeline: Any):
    cond, empty = family.encode_captions(CAPTIONS), family.encode_captions(["", ""])
    for mine, theirs in zip((cond, empty), pipeline.encode_prompt(list(CAPTIONS)), strict=True):
        assert mine["prompt"].shape == (2, 512, 16) and mine["length"].tolist() == [len(row) for row in theirs]
        for row, length, their in zip(mine["prompt"], mine["length"], theirs, strict=True):
            assert_close(row[:length], their, atol=1e-5, rtol=1e-5)
    noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    for steps in (1, 3):
        mine = sample(family, noise, cond, empty, Play(sampler="euler", steps=steps, guidance=5.0))
        options: Any = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": 4.0, "latents": noise}
        assert_close(mine, pipeline(list(CAPTIONS), output_type="latent", **options).images, atol=2e-5, rtol=1e-5)
    for image, pixels in zip(family.decode(mine), pipeline(list(CAPTIONS), output_type="np", **options).images, strict=True):
        levels = torch.frombuffer(bytearray(strip(image).tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3) / 255
        assert_close(levels, torch.tensor(pixels), atol=3e-3, rtol=0)
    x0, vae = family.encode_pictures(pictures())["x0"], pipeline.vae
    z = vae.encode(pipeline.image_processor.preprocess([p.image for p in pictures()])).latent_dist.mode()
    assert x0.shape == (2, *family.latent_shape) == (2, 4, 8, 8)
    assert_close(x0, (z - vae.config.shift_factor) * vae.config.scaling_factor, atol=1e-5, rtol=1e-5)


def test_the_target_is_the_velocity_that_leads_the_pipelines_scheduler_back(family: Family, pipeline: Any):
    pipeline.scheduler.set_timesteps(sigmas=[0.4])
    require_velocity(family, pipeline.scheduler)


def test_a_caption_counts_up_to_its_length_whatever_stands_beside_it(family: Family):
    b = batch_of(family)
    long = family.encode_captions([CAPTIONS[0], ", ".join(["a hill at night"] * 20)])
    assert long["length"][1] > 64 > long["length"][0]  # places are counted in 32s
    with torch.no_grad():
        together = family.denoise(b.real, b.t, long)
        alone = family.denoise(b.real[:1], b.t[:1], {name: value[:1] for name, value in long.items()})
        assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
        other = long | {"prompt": long["prompt"].clone()}
        other["prompt"][0, long["length"][0] :] = 7.0
        assert torch.equal(family.denoise(b.real, b.t, other), together)
        other["prompt"][0, long["length"][0] - 1] = 7.0
        assert not torch.allclose(family.denoise(b.real, b.t, other), together, atol=1e-3)


def test_diffusers_pipeline_reads_its_lora_files(family: Family, pipeline: Any, tmp_path: Path):
    lora, path, b = random_lora(family), tmp_path / "mine.safetensors", batch_of(family)
    write_lora(path, lora, family, HeaderInfo("mine", family.export_metadata()), "peft", torch.float32)
    pipeline.load_lora_weights(str(path))
    with torch.no_grad(), applied(family.net, lora):
        expected = family.denoise(b.real, b.t, b.cond)
    family.net = pipeline.transformer
    with torch.no_grad():
        assert_close(family.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
    pipeline.unload_lora_weights()


def test_names_and_shapes_that_are_computed_are_those_of_the_published_network():
    made: Any = ZImageTransformer2DModel
    with torch.device("meta"):
        net = made.from_config(made.load_config(KINDS["z-image"].folder, subfolder="transformer"))
    assert KINDS["z-image"].lora.shapes() == module_shapes(net)
    assert sum(p.numel() for p in net.parameters()) == 6_154_908_736
    tensors = original_tensors("z-image", net.state_dict())
    assert len(tensors) == len(net.state_dict()) - 2 * 34
    assert {key: value.shape for key, value in convert(tensors).items()} == {k: v.shape for k, v in net.state_dict().items()}


@pytest.mark.parametrize(("naming", "right"), [
    ("mine", (210, 210, 210)), ("diffusers", (210, 210, 210)), ("bare", (210, 0, 0)),
    ("comfy", (150, 90, 90)), ("kohya", (150, 150, 0)),
])  # fmt: skip
def test_a_lora_file_for_it_is_recognised_and_judged(naming: str, right: tuple[int, ...], tmp_path: Path):
    """One with three layers in one matrix has 60 modules less."""
    shapes = KINDS["z-image"].lora.shapes()
    learn = {name: shape for name, shape in shapes.items() if name.startswith("layers.") and "adaLN" not in name}
    lora = {f"unet.{name}": Pair(torch.full((1, s[1]), 0.1), torch.full((s[0], 1), 0.1)) for name, s in learn.items()}
    tensors = renamed("z-image", lora, naming.replace("mine", "bare"))
    tensors = {f"diffusion_model.{key}": value for key, value in tensors.items()} if naming == "mine" else tensors
    report: Any = inspect(tiny.save(tmp_path / f"{naming}.safetensors", tensors))
    count = right[0]
    assert report.base == "Z-Image" and report.modules == {"transformer": count}
    said = {verdict.program: verdict.right for verdict in report.programs}
    assert tuple(said[name] for name in ("ComfyUI, SwarmUI", "diffusers", "InvokeAI")) == right
    assert said["spinlite --init-lora"] == count and said["Forge"] == said["sd-scripts"] == 0


def test_turbo_is_refused_and_so_is_the_model_that_edits(flow_configs: Path, tmp_path: Path):
    folder = flow_configs / "z-image"
    file = tiny_zimage.files(folder, tmp_path / "comfy")
    turbo = shutil.copytree(folder, tmp_path / "turbo-by-shift" / "mine")
    scheduler = turbo / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 3.0}), encoding="utf-8")
    for base, why in (
        (file.rename(file.with_name("z_image_turbo_bf16.safetensors")), "by its name"),
        (shutil.copytree(folder, tmp_path / "Z-Image-Turbo"), "by its name"),
        (turbo, "as the shift of 3 in its scheduler says"),
    ):  # fmt: skip
        with pytest.raises(SpinliteError, match=f"is distilled, {why}") as refused:
            require_base(Model(base=str(base), resolution=SIDE))
        assert refused.value.fix == "add --set model.base=Tongyi-MAI/Z-Image; the LoRA works on both"
    require_base(Model(base=str(shutil.copytree(folder, tmp_path / "z-image-de-turbo")), resolution=SIDE))
    config = turbo / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"siglip_feat_dim": 8}), encoding="utf-8")
    with pytest.raises(SpinliteError, match="ZImageTransformer2DModel of a kind or size that spinlite does not train"):
        require_base(Model(base=str(turbo), resolution=SIDE))


def test_captions_are_counted_by_its_own_tokenizer():
    counter = token_counter(Model(base="blank:z-image"))
    assert counter and counter.limit == 504 and counter.count(["Hello world 123", ""]) == [6, 0]
