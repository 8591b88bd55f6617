"""Anima: captions, latents, samples and target against diffusers' own pipeline; its LoRA files; its sizes."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers as convert
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.encoders import encode_vae_image
from torch.testing import assert_close

from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.write import write_lora
from spinlite.families.family import Family
from spinlite.families.flow_layout import original_tensors
from spinlite.families.kinds import KINDS
from spinlite.families.load import token_counter
from spinlite.families.names import module_shapes
from spinlite.families.open import open_checkpoint
from spinlite.lora.apply import applied
from spinlite.lora.metadata import HeaderInfo
from spinlite.training.animation import strip
from spinlite.training.play import sample
from tests.families import tiny, tiny_anima
from tests.families.flows import CAPTIONS, SIDE, batch_of, load, pictures, random_lora, require_velocity


@pytest.fixture
def family(flow_configs: Path) -> Family:
    return load(flow_configs / "anima")


@pytest.fixture(scope="module")
def pipeline(flow_bases: Path) -> Any:
    return tiny_anima.pipeline(flow_bases / "anima")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of torchvision that diffusers' network asks for, where it is not installed."""
    resize = SimpleNamespace(resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size))
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST=0))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)


@pytest.mark.usefixtures("torchvision")
def test_captions_latents_and_samples_are_those_of_the_pipeline(family: Family, pipeline: Any):
    cond, empty = family.encode_captions(CAPTIONS), family.encode_captions(["", ""])
    assert cond["prompt"].shape == (2, 512, 16) and empty["prompt"][:, 0].abs().sum() > 0 == empty["prompt"][:, 1:].abs().sum()
    noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    for steps, guidance in ((1, 4.0), (3, 4.0)):
        mine = sample(family, noise, cond, empty, Play(sampler="euler", steps=steps, guidance=guidance))
        options: Any = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "output_type": "pt"}
        state = pipeline(prompt=CAPTIONS, latents=noise.clone(), **options)
        assert_close(cond["prompt"], state.get("prompt_embeds"), atol=1e-5, rtol=1e-5)
        assert_close(empty["prompt"], state.get("negative_prompt_embeds"), atol=1e-5, rtol=1e-5)
        assert_close(mine, state.get("latents"), atol=2e-5, rtol=1e-5)
        for image, pixels in zip(family.decode(mine), state.get("images"), strict=True):
            levels = torch.frombuffer(bytearray(strip(image).tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3) / 255
            assert_close(levels, pixels.permute(1, 2, 0).float(), atol=3e-3, rtol=0)


def test_diffusers_pipeline_reads_its_lora_files(family: Family, pipeline: Any, tmp_path: Path):
    lora, path, b = random_lora(family), tmp_path / "mine.safetensors", batch_of(family)
    write_lora(path, lora, family, HeaderInfo("mine", family.export_metadata()), "peft", torch.float32)
    pipeline.load_lora_weights(str(path))
    with torch.no_grad(), applied(family.net, lora):
        expected = family.denoise(b.real, b.t, b.cond)
    family.net = pipeline.transformer
    family.net.register_to_config(concat_padding_mask=False)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        assert_close(family.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
    family.net.register_to_config(concat_padding_mask=True)  # pyright: ignore[reportCallIssue]
    pipeline.unload_lora_weights()


def test_latents_are_those_of_the_pipeline(family: Family, pipeline: Any):
    images = [p.image for p in pictures()]
    pixels = pipeline.image_processor.preprocess(images)
    x0 = family.encode_pictures(pictures())["x0"]
    assert x0.shape == (2, *family.latent_shape) == (2, 4, 1, 8, 8)
    theirs = encode_vae_image(pixels, pipeline.vae, torch.Generator(), torch.device("cpu"), torch.float32, 4)
    assert_close(x0, theirs, atol=1e-5, rtol=1e-5)


def test_the_target_is_the_velocity_that_leads_the_pipelines_scheduler_back(family: Family, pipeline: Any):
    pipeline.scheduler.set_timesteps(sigmas=[0.8])
    require_velocity(family, pipeline.scheduler)


def test_names_and_shapes_that_are_computed_are_those_of_the_published_network():
    made: Any = CosmosTransformer3DModel
    with torch.device("meta"):
        net = made.from_config(made.load_config(KINDS["anima"].folder, subfolder="transformer"))
    assert KINDS["anima"].lora.shapes() == module_shapes(net)
    assert sum(p.numel() for p in net.parameters()) == 1_956_405_248
    tensors = original_tensors("anima", net.state_dict())
    assert len(tensors) == len(net.state_dict())
    there = {f"net.{key}": value for key, value in tensors.items()}
    assert convert(there).keys() == net.state_dict().keys()


def test_a_lora_file_for_it_is_recognised_and_judged(tmp_path: Path):
    shapes = KINDS["anima"].lora.shapes()
    learn = {name: shape for name, shape in shapes.items() if ".attn" in name or ".ff." in name}
    for naming, right in (("mine", (280, 280, 280, 0)), ("transformer", (0, 280, 0, 0)), ("kohya", (280, 0, 280, 280))):
        tensors: dict[str, torch.Tensor] = {}
        for name, (out, columns) in learn.items():
            key = KINDS["anima"].lora.written(name)
            key = f"transformer.{name}" if naming == "transformer" else key
            key = key.replace("diffusion_model.", "lora_unet_").replace(".", "_") if naming == "kohya" else key
            ends = (".lora_down", ".lora_up") if naming == "kohya" else (".lora_A", ".lora_B")
            for end, size in zip(ends, ((1, columns), (out, 1)), strict=True):
                tensors[f"{key}{end}.weight"] = torch.full(size, 0.1)
        report: Any = inspect(tiny.save(tmp_path / f"{naming}.safetensors", tensors))
        assert report.base == "Anima" and report.modules == {"transformer": 280}
        said = {verdict.program: verdict.right for verdict in report.programs}
        assert tuple(said[name] for name in ("ComfyUI, SwarmUI", "diffusers", "InvokeAI", "sd-scripts")) == right
        assert said["spinlite --init-lora"] == 280 and said["Forge"] == 0


def test_captions_are_counted_by_t5s_tokenizer():
    counter = token_counter(Model(base="blank:anima"))
    assert counter and counter.limit == 511 and counter.count(["a red cat", ""]) == [4, 0]


def test_a_folder_of_another_size_of_cosmos_is_no_anima(flow_configs: Path, tmp_path: Path):
    folder = shutil.copytree(flow_configs / "anima", tmp_path / "cosmos")
    assert open_checkpoint(str(folder)).kind == "anima"
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"text_embed_dim": 16', '"text_embed_dim": 32'), encoding="utf-8")
    with pytest.raises(SpinliteError, match="CosmosTransformer3DModel of a kind or size that spinlite does not train"):
        open_checkpoint(str(folder))
