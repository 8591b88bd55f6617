"""SDXL on a small random base of its structure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from spinlite.config.load import validate_settings
from spinlite.config.settings import Model, Play
from spinlite.data.encoded import Encoded
from spinlite.data.pictures import resize_and_crop
from spinlite.data.records import Record
from spinlite.errors import SpinliteError
from spinlite.export.write import write_lora
from spinlite.families.sdxl import StableDiffusionXL
from spinlite.lora.adapters import Slots, module_names
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import lora_of_snapshot
from spinlite.maths.draws import gaussian
from spinlite.memory import device
from spinlite.methods.spin import SPIN
from spinlite.runs.files import fingerprint_files
from spinlite.runs.store import Store, read_tensors
from spinlite.selfplay import train
from spinlite.training.batches import Batch, make_batch
from spinlite.training.play import fake_key, play, sample
from spinlite.training.step import measure, step
from tests.families import tiny
from tests.families.test_checkpoint import relabelled
from tests.toy import Quiet

CPU = device.Device(torch.device("cpu"), "a test")
CAPTIONS = ["red apple", "a dog face on a hill"]


@pytest.fixture(scope="module")
def family(tiny_bases: Path) -> StableDiffusionXL:
    return StableDiffusionXL(Model(base=str(tiny_bases / "sdxl")), CPU)


@pytest.fixture
def lora(tiny_bases: Path) -> tuple[StableDiffusionXL, Slots]:
    family = StableDiffusionXL(Model(base=str(tiny_bases / "sdxl")), CPU)
    slots = Slots(family.net, family.lora_targets["all"], rank=4, alpha=8.0, seed=1)
    torch.manual_seed(0)
    for who in ("policy", "opponent"):
        slots.load(who, {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state(who).items()})
    return family, slots


def batch(family: StableDiffusionXL) -> Batch:
    torch.manual_seed(2)
    real, fake, eps = (torch.randn(2, *family.latent_shape) for _ in range(3))
    ids = torch.tensor([[100.0, 300.0, 0.0, 64.0, 64.0, 64.0], [64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
    return Batch(real, fake, eps, torch.tensor([50, 800]), family.encode_captions(CAPTIONS) | {"time_ids": ids})


def pipeline(base: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(str(base), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pictures(tmp_path: Path) -> list[Record]:
    Image.effect_mandelbrot((160, 90), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "wide.png")
    Image.effect_mandelbrot((64, 128), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "tall.png")
    paths = [tmp_path / "wide.png", tmp_path / "tall.png"]
    return [Record(path, caption, fingerprint_files([path])) for path, caption in zip(paths, CAPTIONS, strict=True)]


@pytest.mark.parametrize("labels", [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}])
def test_the_sampler_draws_what_diffusers_pipeline_draws(labels: dict, tiny_bases: Path, tmp_path: Path):
    base = relabelled(tiny_bases / "sdxl", tmp_path / "base", **labels)
    family = StableDiffusionXL(Model(base=str(base)), CPU)
    noise = torch.stack([gaussian(family.latent_shape, "x", i) for i in range(2)])
    mine = sample(
        family, noise, family.encode_captions(CAPTIONS), family.encode_captions([""] * 2), Play(steps=4, guidance=3.0)
    )
    pipe: Any = pipeline(base)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with torch.no_grad():
        theirs = pipe(CAPTIONS, negative_prompt=["", ""], latents=noise, num_inference_steps=4, guidance_scale=3.0,
                      output_type="latent").images  # fmt: skip
    assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["dpm++", "ddim", "euler"])
def test_with_zero_terminal_snr_every_sampler_starts_from_noise_alone(name, configs: Path, monkeypatch: pytest.MonkeyPatch):
    """A network that knows x0 predicts v = (a x_t - x0) / s; whatever the solver, it must arrive at x0."""
    family = zero_snr(configs)
    x0 = torch.randn(2, *family.latent_shape)
    seen = []

    def knows(x_t, t, cond):
        seen.append(t[0].item())
        a, s = family.path.coefficients(t.round().long(), 4)
        return (a * x_t - x0) / s

    monkeypatch.setattr(family, "denoise", knows)
    got = sample(family, torch.randn_like(x0), {}, {}, Play(steps=20, guidance=1.0, sampler=name))
    assert seen[0] == 999 and (got - x0).abs().mean() < 0.05


def zero_snr(bases: Path) -> StableDiffusionXL:
    """v-prediction with zero terminal SNR: the single file says nothing, so that a preset may."""
    return StableDiffusionXL(Model(base=str(bases / "sdxl.safetensors"), prediction="v", zero_snr=True), CPU)


def test_what_a_picture_was_cut_from_conditions_it(family: StableDiffusionXL, pictures: list[Record], tmp_path: Path):
    encoded = Encoded(family, pictures, tmp_path / "cache", 2, lambda done, of: None)
    cond = encoded.cond(pictures, [False, True])
    assert cond["time_ids"].tolist() == [[90, 160, 0, 25, 64, 64], [128, 64, 32, 0, 64, 64]]
    assert torch.equal(cond["prompt"][1], family.encode_captions([""])["prompt"][0]) and cond["pooled"].shape == (2, 40)
    plain = {name: value for name, value in cond.items() if name != "time_ids"}
    x, t = torch.randn(2, *family.latent_shape), torch.tensor([100, 100])
    with torch.no_grad():
        whole = cond | {"time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).expand(2, -1)}
        assert torch.equal(family.denoise(x, t, plain), family.denoise(x, t, whole))
        assert not torch.allclose(family.denoise(x, t, plain), family.denoise(x, t, cond), rtol=1e-4)


def test_a_caption_is_encoded_once_and_nothing_but_the_network_stays(
    tiny_bases: Path, pictures: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    family = StableDiffusionXL(Model(base=str(tiny_bases / "sdxl")), CPU)
    encoded: list[str] = []
    whole = family.encode_captions
    monkeypatch.setattr(
        family, "encode_captions", lambda captions, chunks: (encoded.extend(captions), whole(captions, chunks))[1]
    )
    twice = [*pictures, Record(pictures[0].path, pictures[1].caption, pictures[0].key)]
    Encoded(family, twice, tmp_path / "cache", 2, lambda done, of: None)
    assert sorted(encoded) == sorted(["", *CAPTIONS]) and not family._loaded
    Encoded(family, twice, tmp_path / "cache", 2, lambda done, of: None)
    assert len(encoded) == 3


def test_half_a_base_makes_half_precision_conditioning_and_a_vae_in_full(tiny_bases: Path, pictures: list[Record]):
    for precision, vae in (("fp16", torch.float32), ("bf16", torch.bfloat16)):
        where = device.Device(torch.device("cpu"), "a test", device.Levers(precision=precision))
        family = StableDiffusionXL(Model(base=str(tiny_bases / "sdxl")), where)
        assert family._part("vae").dtype == vae
        assert {value.dtype for value in family.encode_captions(CAPTIONS).values()} == {where.dtype}
        encoded = family.encode_pictures([resize_and_crop(Image.open(pictures[0].path), family.size)])
        assert encoded["x0"].dtype == encoded["time_ids"].dtype == torch.float32 and encoded["x0"].isfinite().all()


def test_a_picture_that_encodes_to_nan_is_named_and_not_kept(
    tiny_bases: Path, configs: Path, pictures: list[Record], tmp_path: Path
):
    broken = load_file(tiny_bases / "sdxl.safetensors")
    broken["first_stage_model.encoder.conv_in.bias"] = torch.full((8,), 3e38)  # an overflow
    family = StableDiffusionXL(Model(base=str(tiny.save(tmp_path / "x.safetensors", broken))), CPU)
    with pytest.raises(SpinliteError, match=r"wide.png: encodes to NaN .*: set model.vae"):
        Encoded(family, pictures, tmp_path / "cache", 2, lambda done, of: None)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_fakes_are_played_with_the_conditioning_that_they_are_learned_with(family, pictures, tmp_path: Path, monkeypatch):
    encoded = Encoded(family, pictures, tmp_path / "cache", 2, lambda done, of: None)
    seen = []
    whole = family.denoise
    monkeypatch.setattr(family, "denoise", lambda x, t, cond: (seen.append(cond["time_ids"]), whole(x, t, cond))[1])
    store = Store(tmp_path / "fakes")
    play(family, encoded, pictures, Play(steps=1, guidance=2.0), 2, store, lambda done, of: None, "x")
    fakes = lambda records: store.get([fake_key(r) for r in records])["x0"]  # noqa: E731
    made = make_batch(family, encoded, [(r, 0) for r in pictures], fakes, None, ("x",))
    assert made.fake is not None and made.fake.isfinite().all()
    assert torch.equal(seen[0], torch.cat([made.cond["time_ids"]] * 2))


def test_one_graph_at_a_time_gives_the_same_gradient(lora):
    family, slots = lora
    found = {}
    for one_graph in (False, True):
        loss, _ = step(family, slots, SPIN(), batch(family), one_graph)
        found[one_graph] = [loss, *(p.grad for p in slots.parameters())]
        for p in slots.parameters():
            p.grad = None
    assert_close(found[True], found[False], rtol=1e-3, atol=1e-6 * max(g.abs().max() for g in found[False]).item())


def test_the_exported_lora_does_in_diffusers_what_it_did_in_training(lora, tiny_bases: Path, tmp_path: Path):
    family, slots = lora
    path = tmp_path / "mine.safetensors"
    plain = StableDiffusionXL(Model(base=str(tiny_bases / "sdxl")), CPU)
    lora = lora_of_snapshot(slots.state("policy"), slots.scale)
    said = write_lora(path, lora, plain, HeaderInfo("mine", plain.export_metadata()), "kohya", torch.float16)
    assert said.modules == len(module_names(slots.state("policy"))) and said.step is not None and said.step < 0.01
    tensors, metadata = read_tensors(path)
    assert all(name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) for name in tensors)
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    pipe = pipeline(tiny_bases / "sdxl")
    pipe.load_lora_weights(str(path))
    b = batch(family)
    x_t = family.path.noise(b.real, b.eps, b.t)
    added = {"text_embeds": b.cond["pooled"], "time_ids": b.cond["time_ids"]}
    with torch.no_grad():
        theirs = pipe.unet(x_t, b.t, encoder_hidden_states=b.cond["prompt"], added_cond_kwargs=added).sample
        mine = family.denoise(x_t, b.t, b.cond)
        with slots.use("base"):
            base = family.denoise(x_t, b.t, b.cond)
    assert (theirs - mine).norm() < 0.01 * (mine - base).norm()


def test_a_v_prediction_model_learns_on_the_schedule_that_ends_in_noise(configs: Path):
    family = zero_snr(configs)
    slots = Slots(family.net, family.lora_targets["linear"], rank=2, alpha=2.0, seed=1)
    b = batch(family)
    last = Batch(b.real, b.fake, b.eps, torch.tensor([999, 999]), b.cond)
    assert torch.equal(family.path.noise(b.real, b.eps, last.t), b.eps)  # pure noise
    assert torch.equal(family.path.target(b.real, b.eps, last.t), -b.real)
    assert measure(family, slots, "policy_real", last).isfinite().all()
    loss, _ = step(family, slots, SPIN(), last, True)
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)


def test_a_run_from_a_single_file_ends_with_a_lora(configs: Path, swatches: Path, tmp_path: Path):
    for path in sorted(swatches.iterdir())[12:]:  # keeps 6 pictures with their captions
        path.unlink()
    marked = load_file(configs / "sdxl.safetensors") | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    base = tiny.save(tmp_path / "Some Finetune.safetensors", marked)
    settings = validate_settings({
        "model": {"base": str(base), "rank": 2, "rslora": True},
        "data": {"folder": str(swatches), "upscale": 4.0},
        "play": {"steps": 2, "guidance": 2.0},
        "learn": {"updates": 2, "batch": 2},
        "memory": {"play_batch": 8},
        "judge": {"draws": 1, "prompts": 1, "stop": False},
        "run": {"rounds": 1},
    })  # fmt: skip
    outcome = train(settings, tmp_path / "runs" / "xl", Quiet())
    assert len(outcome.rounds) == 1 and outcome.rounds[0]["policy_real"] > 0
    tensors, metadata = read_tensors(outcome.run.export_path)
    assert "lora_unet_middle_block_1_proj_in.lora_up.weight" in tensors
    assert metadata["modelspec.prediction_type"] == "v"
