"""Stable Diffusion's layout, on the real small weights of the demo."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import nn
from torch.testing import assert_close

from spinlite.config.presets import PACKAGE
from spinlite.config.settings import Model, Play
from spinlite.data.pictures import open_picture, resize_and_crop
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.export.write import write_lora
from spinlite.families.schedule import OTHERS, SAMPLERS
from spinlite.families.sd import StableDiffusion
from spinlite.lora.adapters import Slots, delta, module_names
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import lora_of_snapshot
from spinlite.maths.draws import gaussian, generator
from spinlite.maths.losses import error
from spinlite.memory import device
from spinlite.methods.spin import SPIN
from spinlite.runs.store import read_tensors
from spinlite.training.batches import Batch
from spinlite.training.play import sample
from spinlite.training.step import measure, step

BASE = PACKAGE / "demo" / "base"
CPU = device.Device(torch.device("cpu"), "a test")
CAPTIONS = ["red apple", "dog face", "airplane"]


@pytest.fixture(scope="module")
def family() -> StableDiffusion:
    return StableDiffusion(Model(base="demo"), CPU)


@pytest.fixture
def lora() -> tuple[StableDiffusion, Slots]:
    """A family of its own, with a LoRA as large as a trained one in both slots."""
    family = StableDiffusion(Model(base="demo"), CPU)
    slots = Slots(family.net, family.lora_targets["all"], rank=4, alpha=8.0, seed=1)
    torch.manual_seed(0)
    for who in ("policy", "opponent"):
        slots.load(who, {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state(who).items()})
    return family, slots


def batch(family: StableDiffusion, n: int = 3) -> Batch:
    torch.manual_seed(2)
    real, fake, eps = (torch.randn(n, *family.latent_shape) for _ in range(3))
    return Batch(real, fake, eps, torch.tensor([50, 500, 950])[:n], family.encode_captions(CAPTIONS[:n]))


def pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(str(BASE), dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_demo_is_read_as_what_it_is(family: StableDiffusion):
    assert family.path.prediction == "eps" and family.path.alpha_bar is not None and len(family.path.alpha_bar) == 1000
    assert family.path.alpha_bar[-1].sqrt().item() == pytest.approx(0.0683, abs=1e-3)  # SD's schedule: not zero at the end
    assert family.size == (64, 64) and family.latent_shape == (4, 16, 16)


def test_pictures_survive_encoding_and_decoding(family: StableDiffusion):
    paths = sorted((PACKAGE / "demo" / "fluent").glob("*.png"))[:8]
    pictures = [open_picture(path) for path in paths]
    latents = family.encode_pictures([resize_and_crop(picture, family.size) for picture in pictures])["x0"]
    assert latents.shape == (8, 4, 16, 16) and 0.5 < latents.std() < 2
    for before, after in zip(pictures, family.decode(latents), strict=True):
        a, b = (torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).double() for p in (before, after))
        assert -10 * ((a - b) / 255).square().mean().log10() > 18  # dB


def test_the_sampler_draws_what_diffusers_pipeline_draws(family: StableDiffusion):
    noise = torch.stack([gaussian(family.latent_shape, "x", i) for i in range(3)])
    settings = Play(steps=6, guidance=3.0)
    mine = sample(family, noise, family.encode_captions(CAPTIONS), family.encode_captions([""] * 3), settings)
    with torch.no_grad():
        theirs = pipeline()(CAPTIONS, latents=noise, num_inference_steps=6, guidance_scale=3.0, output_type="latent")
    assert_close(mine, theirs.images, atol=2e-3, rtol=1e-3)  # pyright: ignore[reportAttributeAccessIssue]


def test_without_guidance_there_is_one_forward_a_step(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch):
    rows = []
    whole = family.denoise
    monkeypatch.setattr(family, "denoise", lambda x, t, c: (rows.append(len(x)), whole(x, t, c))[1])
    noise = torch.zeros(2, *family.latent_shape)
    for guidance in (1.0, 2.0):
        sample(
            family,
            noise,
            family.encode_captions(CAPTIONS[:2]),
            family.encode_captions(["", ""]),
            Play(steps=3, guidance=guidance),
        )
    assert rows == [2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("name", [*SAMPLERS, *OTHERS])
def test_every_sampler_ends_with_the_clean_sample_of_a_perfect_network(name: str, monkeypatch: pytest.MonkeyPatch):
    """A network that knows x0 predicts (x_t - a x0) / s; whatever the solver, it must arrive at x0."""
    family = StableDiffusion(Model(base="demo"), CPU)
    x0 = torch.randn(2, *family.latent_shape)

    def knows(x_t, t, cond):
        a, s = family.path.coefficients(t.round().long(), 4)
        return (x_t - a * x0) / s

    monkeypatch.setattr(family, "denoise", knows)
    chance = [generator("x", i) for i in range(2)]
    got = sample(family, torch.randn_like(x0), {}, {}, Play(steps=20, guidance=1.0, sampler=name), chance)
    assert (got - x0).abs().mean() < 0.05  # DDIM stops at the first time of the schedule, where s = 0.03


def test_captions_condition_and_the_empty_one_does_not_fail(family: StableDiffusion):
    prompts = family.encode_captions([*CAPTIONS, ""])["prompt"]
    assert prompts.shape[:2] == (4, 32) and not torch.equal(prompts[0], prompts[3])
    assert torch.equal(prompts, family.encode_captions([*CAPTIONS, ""])["prompt"])


def test_one_graph_at_a_time_gives_the_same_gradient(lora):
    family, slots = lora
    found = {}
    for one_graph in (False, True):
        loss, _ = step(family, slots, SPIN(), batch(family), one_graph)
        found[one_graph] = [loss, *(p.grad for p in slots.parameters())]
        for p in slots.parameters():
            p.grad = None
    assert_close(found[True], found[False], rtol=1e-3, atol=1e-6 * max(g.abs().max() for g in found[False]).item())


def test_the_opponent_is_a_merged_copy_of_base_and_snapshot(lora):
    family, slots = lora
    merged = StableDiffusion(Model(base="demo"), CPU)
    snapshot = slots.state("opponent")
    plain: dict[str, nn.Module] = dict(merged.net.named_modules())
    for module in module_names(snapshot):
        plain[module].weight.data += delta(snapshot, module, slots.scale)  # pyright: ignore
    b = batch(family)
    x_t = family.path.noise(b.real, b.eps, b.t)
    with torch.no_grad():
        expected = error(merged.denoise(x_t, b.t, b.cond), b.eps)
        got = measure(family, slots, "opponent_real", b)
        assert_close(got, expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(got, measure(family, slots, "base_real", b), rtol=1e-3)


def test_a_v_prediction_scheduler_makes_a_v_path(tmp_path: Path):
    base = tmp_path / "v"
    shutil.copytree(BASE, base)
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}), encoding="utf-8")
    family = StableDiffusion(Model(base=str(base)), CPU)
    assert family.path.prediction == "v" and family.export_metadata()["ss_base_model_version"] == "sd_v1_v"
    assert family.base_hash != StableDiffusion(Model(base="demo"), CPU).base_hash


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_the_exported_lora_does_in_diffusers_what_it_did_in_training(layout: Any, lora, tmp_path: Path):
    family, slots = lora
    path = tmp_path / "mine.safetensors"
    plain = StableDiffusion(Model(base="demo"), CPU)
    lora = lora_of_snapshot(slots.state("policy"), slots.scale)
    said = write_lora(path, lora, plain, HeaderInfo("mine", plain.export_metadata()), layout, torch.float16)
    assert said.modules == len(module_names(slots.state("policy"))) == len(lora) and said.step is not None and said.step < 0.01
    pipe = pipeline()
    pipe.load_lora_weights(str(path))
    b = batch(family)
    x_t = family.path.noise(b.real, b.eps, b.t)
    with torch.no_grad():
        theirs = pipe.unet(x_t, b.t, encoder_hidden_states=b.cond["prompt"]).sample
        mine = family.denoise(x_t, b.t, b.cond)
        with slots.use("base"):
            base = family.denoise(x_t, b.t, b.cond)
    assert (theirs - mine).norm() < 0.01 * (mine - base).norm()


@pytest.mark.parametrize("missing", ["unet", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_a_base_without_a_part_is_named(missing: str, tmp_path: Path):
    base = tmp_path / "b"
    shutil.copytree(BASE, base)
    shutil.rmtree(base / missing)
    with pytest.raises(SpinliteError, match=f"has no {missing}"):
        StableDiffusion(Model(base=str(base)), CPU)


def test_pickled_weights_are_not_opened(tmp_path: Path):
    base = tmp_path / "b"
    shutil.copytree(BASE, base)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(read_tensors(weights)[0], base / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(SpinliteError, match=r"has no weights of its unet as .safetensors \(others, such as .bin, are never"):
        StableDiffusion(Model(base=str(base)), CPU)


def test_a_record_is_hashable_and_plain():
    assert Record(Path("a.png"), "a", "k") == Record(Path("a.png"), "a", "k")
