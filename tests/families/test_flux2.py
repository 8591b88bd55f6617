"""FLUX.2 [klein]: sampler, target and captions against diffusers' own pipeline; its LoRA files; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
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
from spinlite.lora.adapters import Slots
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import lora_of_snapshot
from spinlite.memory.device import Levers
from spinlite.training.animation import strip
from spinlite.training.play import sample
from tests.families import tiny, tiny_klein
from tests.families.flows import CAPTIONS, SIDE, batch_of, load, pictures, require_velocity


@pytest.fixture
def family(flow_configs: Path) -> Family:
    return load(flow_configs / "klein-4b")


@pytest.fixture(scope="session")
def pipeline(flow_bases: Path) -> Any:
    pipe: Any = Flux2KleinPipeline.from_pretrained(str(flow_bases / "klein-4b"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_captions_latents_and_samples_are_those_of_the_pipeline(family: Family, pipeline: Any):
    cond, empty = family.encode_captions(CAPTIONS), family.encode_captions(["", ""])
    theirs, _ = pipeline.encode_prompt(CAPTIONS)
    assert_close(cond["prompt"], theirs, atol=1e-5, rtol=1e-5)
    x0 = family.encode_pictures(pictures())["x0"]
    pixels = pipeline.image_processor.preprocess([p.image for p in pictures()])
    assert x0.shape == (2, *family.latent_shape) == (2, 16, 16, 16)
    assert_close(x0, pipeline._encode_vae_image(pixels, torch.Generator()), atol=1e-5, rtol=1e-5)
    noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2):
        mine = sample(family, noise, cond, empty, Play(sampler="euler", steps=steps, guidance=3.0))
        options: Any = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": 3.0}
        drawn = pipeline(prompt=CAPTIONS, latents=noise, output_type="np", **options).images
        for image, pixels in zip(family.decode(mine), drawn, strict=True):
            levels = torch.frombuffer(bytearray(strip(image).tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3) / 255
            assert_close(levels, torch.tensor(pixels), atol=3e-3, rtol=0)
        exact = pipeline(prompt=CAPTIONS, latents=noise, output_type="latent", **options).images
        assert_close(family.normaliser(pipeline.vae).restore(mine), exact, atol=2e-5, rtol=1e-5)  # pyright: ignore


def test_the_target_is_the_velocity_that_leads_the_pipelines_scheduler_back(family: Family, pipeline: Any):
    pipeline.scheduler.set_timesteps(sigmas=[0.8], mu=0.0)
    require_velocity(family, pipeline.scheduler)


def test_diffusers_pipeline_reads_its_lora_files(family: Family, pipeline: Any, flow_configs: Path, tmp_path: Path):
    slots = Slots(family.net, family.lora_targets["linear"], 4, 8.0, 0)
    for i, p in enumerate(slots.parameters()):
        torch.nn.init.normal_(p, 0.0, 0.1, generator=torch.Generator().manual_seed(i))
    lora = lora_of_snapshot(slots.state("policy"), slots.scale)
    path, plain = tmp_path / "mine.safetensors", load(flow_configs / "klein-4b")
    write_lora(path, lora, plain, HeaderInfo("mine", plain.export_metadata()), "peft", torch.float32)
    b = batch_of(family)
    pipeline.load_lora_weights(str(path))
    with torch.no_grad():
        expected = family.denoise(b.real, b.t, b.cond)
        plain.net = pipeline.transformer
        assert_close(plain.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
    pipeline.unload_lora_weights()


@pytest.mark.parametrize("kind", ["klein-4b", "klein-9b"])
def test_names_and_shapes_that_are_computed_are_those_of_the_published_network(kind: str):
    made: Any = Flux2Transformer2DModel
    with torch.device("meta"):
        net = made.from_config(made.load_config(KINDS[kind].folder, subfolder="transformer"))
    assert KINDS[kind].lora.shapes() == module_shapes(net)
    assert sum(p.numel() for p in net.parameters()) == {"klein-4b": 3_875_544_576, "klein-9b": 9_078_581_248}[kind]
    tensors = original_tensors(kind, net.state_dict())
    assert len(tensors) == len(net.state_dict()) - 4 * 2 * net.config.num_layers // 2


def test_a_lora_file_for_it_is_recognised_and_judged(tmp_path: Path):
    shapes = {name: shape for name, shape in KINDS["klein-4b"].lora.shapes().items() if "transformer_blocks." in name}
    tensors = {
        f"transformer.{name}.{part}.weight": torch.zeros(*size) + 0.1
        for name, (out, columns) in shapes.items()
        for part, size in (("lora_A", (1, columns)), ("lora_B", (out, 1)))
    }
    report: Any = inspect(tiny.save(tmp_path / "klein.safetensors", tensors))
    assert report.base == "FLUX.2 [klein] base 4B" and report.modules == {"transformer": 100} and report.layout == "diffusers"
    right = {verdict.program: verdict.right for verdict in report.programs}
    assert right == {"ComfyUI, SwarmUI": 100, "diffusers": 100, "InvokeAI": 100, "A1111 1.10": 0, "Forge": 0, "sd-scripts": 0,
                     "spinlite --init-lora": 100}  # fmt: skip


def test_what_can_not_be_trained_is_refused_with_what_to_type(flow_configs: Path, tmp_path: Path):
    folder = flow_configs / "klein-4b"
    distilled = tmp_path / "distilled"
    shutil.copytree(folder, distilled)
    index = distilled / "model_index.json"
    index.write_text(index.read_text().replace('"is_distilled": false', '"is_distilled": true'), encoding="utf-8")
    files = tiny_klein.files(folder, tmp_path / "comfy")
    for base, why in (
        (distilled, "as its model_index.json says"),
        (files.rename(files.with_name("flux-2-klein-4b.safetensors")), "by its name"),
    ):  # fmt: skip
        with pytest.raises(SpinliteError, match=f"is distilled, {why}") as refused:
            require_base(Model(base=str(base), resolution=SIDE))
        assert "model.base=black-forest-labs/FLUX.2-klein-base-4B; the LoRA works on both" in (refused.value.fix or "")
    for settings, problem in (({"prediction": "v"}, "prediction = 'v' means nothing"), ({"clip_skip": 2}, "clip_skip = 2")):
        with pytest.raises(SpinliteError, match=problem):
            require_base(Model(base=str(folder), resolution=SIDE, **settings))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpinliteError, match="overflows in fp16"):
        load(folder, Levers("fp16"))
    with pytest.raises(SpinliteError, match="family = 'kleine'") as refused:
        require_base(Model(base=str(folder), family="kleine"))
    assert refused.value.fix == "add --set model.family=klein"


def test_captions_are_counted_by_its_own_tokenizer():
    counter = token_counter(Model(base="blank:klein-4b"))
    assert counter and counter.limit == 500 and counter.count(["Hello world 123", ""]) == [6, 0]
