"""Wan 2.1: files, sampler, target, captions and clips against diffusers' own pipeline; then a run on clips."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.bench.run import _shrink  # pyright: ignore[reportPrivateUsage]
from spinlite.config.load import validate_settings
from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.write import write_lora
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.flow_layout import original_tensors
from spinlite.families.kinds import KINDS
from spinlite.families.latents import PerChannel
from spinlite.families.load import clip_rule, load_family, require_base, token_counter
from spinlite.families.names import module_shapes
from spinlite.families.vae import decode_clips, encode_clips
from spinlite.lora.adapters import Slots
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import lora_of_snapshot
from spinlite.memory.device import Device, Levers
from spinlite.plan.card import Card
from spinlite.plan.phase_costs import PhaseCosts
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.batches import Batch
from spinlite.training.play import sample
from tests.clips import ball, captioned, noise_clips
from tests.families import tiny, tiny_wan
from tests.toy import Quiet

CAPTIONS = ["a red cat", "two dogs  on a hill, at night"]
SIDE, FRAMES = 32, 9
CONDS: dict[str, Cond] = {}


def load(base: Path | str, levers: Levers | None = None, **model: Any) -> Family:
    where = Device(torch.device("cpu"), "a test", levers or Levers())
    chosen: dict[str, Any] = {"resolution": SIDE, "frames": FRAMES} | model
    return load_family(Model(base=str(base), **chosen), where)


@pytest.fixture
def family(flow_configs: Path) -> Family:
    return load(flow_configs / "wan")


@pytest.fixture(scope="module")
def pipeline(flow_bases: Path) -> Any:
    pipe: Any = WanPipeline.from_pretrained(str(flow_bases / "wan"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clips() -> list[Picture]:
    return noise_clips(2, FRAMES, SIDE)


def batch_of(family: Family) -> Batch:
    """Two clips. Captions are encoded once for every family of the same text encoder."""
    torch.manual_seed(1)
    latents = torch.randn(3, 2, *family.latent_shape)
    cond = CONDS.get(family.caption_hash) or CONDS.setdefault(family.caption_hash, family.encode_captions(CAPTIONS))
    return Batch(latents[0], latents[1], latents[2], torch.tensor([0.3, 0.8]), dict(cond))


class Exact(UniPCMultistepScheduler):
    """The scheduler of Wan's pipeline, without rounding its times to whole numbers."""

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        super().set_timesteps(*args, **options)
        self.timesteps = self.sigmas[:-1] * self.config["num_train_timesteps"]


def test_captions_latents_and_samples_are_those_of_the_pipeline(family: Any, pipeline: Any, clips: list[Picture]):
    cond, empty = family.encode_captions(CAPTIONS), family.encode_captions(["", ""])
    theirs, _ = pipeline.encode_prompt(CAPTIONS, max_sequence_length=512)
    assert theirs.shape[1] == 512 and not theirs[0, 20:].any()
    assert_close(cond["prompt"], theirs, atol=1e-5, rtol=1e-5)
    x0 = family.encode_pictures(clips)["x0"]
    assert x0.shape == (2, *family.latent_shape) == (2, 4, 3, 4, 4)
    pixels = pipeline.video_processor.preprocess_video([[p.image, *p.rest] for p in clips])
    mean, deviation = (torch.tensor(tiny_wan.VAE[f"latents_{name}"]).view(1, 4, 1, 1, 1) for name in ("mean", "std"))
    assert_close(x0, (pipeline.vae.encode(pixels).latent_dist.mode() - mean) / deviation, atol=1e-5, rtol=1e-5)
    noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    whole = pipeline.scheduler
    options: Any = {"height": SIDE, "width": SIDE, "num_frames": FRAMES, "guidance_scale": 3.0}
    for steps in (1, 3):
        mine = sample(family, noise, cond, empty, Play(sampler="unipc", steps=steps, guidance=3.0))
        options |= {"prompt": CAPTIONS, "latents": noise, "num_inference_steps": steps}
        pipeline.scheduler = Exact.from_config(whole.config)
        assert_close(mine, pipeline(output_type="latent", **options).frames, atol=1e-5, rtol=1e-5)
        drawn = pipeline(output_type="np", **options).frames
        pipeline.scheduler = whole
        rounded = pipeline(output_type="latent", **options).frames
        assert (mine - rounded).norm() < 0.05 * mine.norm(), "times that are whole numbers change little"
        for frames, pixels in zip(family.decode(mine), drawn, strict=True):
            assert len(frames) == FRAMES
            levels = torch.stack([torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8) for f in frames]) / 255
            assert_close(levels.view(FRAMES, SIDE, SIDE, 3), torch.tensor(pixels), atol=3e-3, rtol=0)


def test_the_target_is_the_velocity_that_leads_the_pipelines_scheduler_back(family: Family, pipeline: Any):
    b, made = batch_of(family), Exact.from_config(pipeline.scheduler.config)
    scheduler: Any = made
    scheduler.set_timesteps(4)
    t = scheduler.sigmas[0]
    x_t = family.path.noise(b.real, b.eps, t.expand(2))
    assert_close(x_t, scheduler.add_noise(b.real, b.eps, scheduler.timesteps[:1]), atol=1e-5, rtol=1e-5)
    target = family.path.target(b.real, b.eps, t.expand(2))
    for time in scheduler.timesteps:
        x_t = scheduler.step(target, time, x_t).prev_sample
    assert_close(x_t, b.real, atol=1e-5, rtol=1e-5)


def test_a_picture_is_a_clip_of_one_frame_and_begins_a_clips_latent(family: Any, clips: list[Picture]):
    still = family.encode_pictures([Picture(clip.image, clip.original_size, (0, 0)) for clip in clips])["x0"]
    assert torch.equal(still[:, :, 0], family.encode_pictures(clips)["x0"][:, :, 0]), "the VAE looks at earlier frames alone"
    [[one], _] = family.decode(still)
    assert one.size == (SIDE, SIDE)
    named = [family.encode_pictures(clips, names)["x0"] for names in (["a", "b"], ["a", "b"], ["b", "a"])]
    assert torch.equal(named[0], named[1]) and not torch.equal(named[0], named[2]), "samples depend on their names alone"


def test_large_frames_are_encoded_and_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spinlite.families.vae.PIXELS", 64 * 64)
    torch.manual_seed(0)
    vae, seen = AutoencoderKLWan(**tiny_wan.VAE), []
    vae.tile_sample_min_height = vae.tile_sample_min_width = 64
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 48
    whole = vae.encoder.forward
    monkeypatch.setattr(vae.encoder, "forward", lambda x, *rest, **names: (seen.append(x.shape), whole(x, *rest, **names))[1])
    image = Image.effect_noise((96, 64), 50).convert("RGB")
    same = PerChannel([0.0], [1.0])
    latents = encode_clips(vae, [[image] * 5], same)
    assert latents.shape == (1, 4, 2, 8, 12) and max(shape[-1] for shape in seen) == 64
    [frames] = decode_clips(vae, latents, same)
    assert [frame.size for frame in frames] == [(96, 64)] * 5
    monkeypatch.setattr("spinlite.families.vae.PIXELS", 2**20)
    assert encode_clips(vae, [[image] * 5], same).shape == latents.shape and seen[-1][-1] == 96


def test_steps_lean_to_noise_as_the_pictures_size_asks(family: Family):
    sizes = {(240, 416): 3.0, (480, 832): 3.0, (720, 1280): 5.0, (1088, 1920): 5.0}
    for (height, width), shift in sizes.items():
        assert family.shift((4, 5, height // 8, width // 8)) == shift
    assert 3.9 < family.shift((4, 5, 640 // 8, 1024 // 8)) < 4.1


@pytest.mark.parametrize(("precision", "prefix"), [("fp32", ""), ("bf16", "model.diffusion_model.")])
def test_files_of_comfyui_are_the_folder(
    precision: str, prefix: str, flow_configs: Path, clips: list[Picture], tmp_path: Path
):  # fmt: skip
    folder, levers = flow_configs / "wan", Levers(precision)
    family: Any = load(folder, levers)
    other: Any = load(tiny_wan.files(folder, tmp_path, prefix), levers)
    both = zip(tensors_of(family), tensors_of(other), strict=True)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in both)
    assert torch.equal(other.encode_captions(CAPTIONS)["prompt"], family.encode_captions(CAPTIONS)["prompt"])
    assert torch.equal(other.encode_pictures(clips)["x0"], family.encode_pictures(clips)["x0"])
    encoder = other._part("text_encoder")
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight, "kept once"


def tensors_of(family: Family) -> list[Tensor]:
    return [*family.net.parameters(), *family.net.buffers()]


def test_a_text_encoder_in_8_bits_is_multiplied_by_its_scales_and_one_without_tokenizer_is_refused(
    flow_configs: Path, tmp_path: Path
):
    net = tiny_wan.files(flow_configs / "wan", tmp_path)
    text = net.parents[1] / "text_encoders" / "umt5_xxl_fp16.safetensors"
    tensors, expected = load_file(text), load(net).encode_captions(CAPTIONS)["prompt"]
    name = "encoder.block.0.layer.0.SelfAttention.q"
    smaller = (tensors[f"{name}.weight"] / 0.01).to(torch.float8_e4m3fn)
    scales = {f"{name}.weight": smaller, f"{name}.scale_weight": torch.tensor(0.01), "scaled_fp8": torch.zeros(2).to(smaller)}
    tiny.save(text, tensors | scales)
    got = load(net).encode_captions(CAPTIONS)["prompt"]
    assert 0 < (got - expected).norm() < 0.05 * expected.norm()
    del tensors["spiece_model"]
    tiny.save(text, tensors)
    for use in (lambda: load(net).encode_captions([""]), lambda: token_counter(Model(base=str(net)))):
        with pytest.raises(SpinliteError, match=r"holds no tokenizer \(spiece_model\)") as refused:
            use()
        assert refused.value.fix == "use ComfyUI's umt5_xxl_fp16.safetensors, which does"


def test_its_lora_files_are_read_by_diffusers_pipeline(family: Family, pipeline: Any, flow_configs: Path, tmp_path: Path):
    slots = Slots(family.net, family.lora_targets["linear"], 4, 8.0, 0)
    for i, p in enumerate(slots.parameters()):
        torch.nn.init.normal_(p, 0.0, 0.1, generator=torch.Generator().manual_seed(i))
    lora = lora_of_snapshot(slots.state("policy"), slots.scale)
    path, plain = tmp_path / "mine.safetensors", load(flow_configs / "wan")
    said = write_lora(path, lora, plain, HeaderInfo("mine", plain.export_metadata()), "peft", torch.float32)
    assert said.modules == len(lora) == 20 and said.step is not None and said.step < 1e-3
    tensors = load_file(path)
    assert "diffusion_model.blocks.1.cross_attn.o.lora_A.weight" in tensors
    assert "diffusion_model.blocks.0.ffn.2.lora_B.weight" in tensors and len(tensors) == 40
    b = batch_of(family)
    pipeline.load_lora_weights(str(path))
    with torch.no_grad():
        expected, plain.net = family.denoise(b.real, b.t, b.cond), pipeline.transformer
        assert_close(plain.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
    pipeline.unload_lora_weights()


def test_names_and_shapes_that_are_computed_are_those_of_the_published_network():
    made: Any = WanTransformer3DModel
    with torch.device("meta"):
        net = made.from_config(made.load_config(KINDS["wan"].folder, subfolder="transformer"))
    assert KINDS["wan"].lora.shapes() == {n: s for n, s in module_shapes(net).items() if n != "patch_embedding"}
    assert sum(p.numel() for p in net.parameters()) == 1_418_996_800
    there = convert_wan_transformer_to_diffusers(original_tensors("wan", net.state_dict()))
    assert {n: t.shape for n, t in there.items()} == {n: t.shape for n, t in net.state_dict().items()}


def test_a_lora_file_for_it_is_recognised_and_judged(tmp_path: Path):
    tensors = {
        f"{KINDS['wan'].lora.written(name)}.{part}.weight": torch.zeros(*size) + 0.1
        for name, (out, columns) in KINDS["wan"].lora.shapes().items() if name.startswith("blocks.")
        for part, size in (("lora_A", (1, columns)), ("lora_B", (out, 1)))
    }  # fmt: skip
    report: Any = inspect(tiny.save(tmp_path / "wan.safetensors", tensors))
    assert report.base == "Wan 2.1 T2V 1.3B" and report.modules == {"transformer": 300}
    right = {verdict.program: verdict.right for verdict in report.programs}
    assert right == {"ComfyUI, SwarmUI": 300, "diffusers": 300, "A1111 1.10": 0, "Forge": 0, "InvokeAI": 0, "sd-scripts": 0,
                     "spinlite --init-lora": 300}  # fmt: skip


def test_other_models_of_wans_are_refused_by_name(flow_configs: Path, tmp_path: Path):
    net = tiny_wan.files(flow_configs / "wan", tmp_path / "comfy")
    tensors = load_file(net)
    first = tensors["patch_embedding.weight"]
    others = {
        "14B": {"patch_embedding.weight": torch.cat([first, first])},  # wider
        "2.2": {"patch_embedding.weight": torch.cat([first, first], 1)},  # of other channels
        "I2V": {"img_emb.proj.0.weight": first.new_zeros(4)},
    }
    for name, changed in others.items():
        with pytest.raises(SpinliteError, match=r"is a video model \(Wan or the like\)"):
            require_base(Model(base=str(tiny.save(tmp_path / f"{name}.safetensors", tensors | changed))))
    folder = tmp_path / "larger"
    shutil.copytree(flow_configs / "wan", folder)
    config = folder / "transformer" / "config.json"
    for changed in ({"num_attention_heads": 4}, {"in_channels": 48}, {"image_dim": 8}):
        config.write_text(json.dumps(tiny_wan.TRANSFORMER | {"_class_name": "WanTransformer3DModel"} | changed))
        with pytest.raises(SpinliteError, match="is a WanTransformer3DModel of a kind or size that spinlite does not train"):
            require_base(Model(base=str(folder)))


def test_its_clips_have_17_frames_and_its_tokens_are_counted(flow_configs: Path):
    rule = clip_rule(Model(base="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))
    assert rule == KINDS["wan"].clips and rule and (rule.fps, rule.most) == (16, 17)
    assert clip_rule(Model(base=str(flow_configs / "wan"), frames=81)) == clip_rule(Model(base="blank:wan", frames=81))
    with pytest.raises(SpinliteError, match=r"frames = 18, .* 1, 5, 9") as refused:
        clip_rule(Model(base="blank:wan", frames=18))
    assert refused.value.fix == "set model.frames = 17"
    for base in ("blank:wan", str(flow_configs / "wan")):
        counter = token_counter(Model(base=base))
        assert counter and counter.limit == 511 and counter.count(["Hello world", ""]) == [2, 0]


def test_bench_halves_clips_as_far_as_the_network_can_read_them(flow_configs: Path):
    settings = validate_settings({"model": {"base": str(flow_configs / "wan"), "resolution": 320}, "learn": {"batch": 2}})
    costs = PhaseCosts(settings, "fp32", "none", None)
    slow = Card("a slow card", "cpu", 2**34, "fp32", 1.0, 1.0, 1.0, True)
    samples, shape, _ = _shrink(load(flow_configs / "wan", resolution=320, frames=17), settings, costs, slow, 1, 1.0)
    assert (samples, shape) == (1, (4, 5, 10, 10)), "it reads 2 x 2 as one"


def test_a_run_on_clips_ends_with_a_lora(flow_configs: Path, tmp_path: Path):
    data = tmp_path / "clips"
    data.mkdir()
    for n in range(8):
        captioned(data / f"{n}.webp", ball(5, 1 + n % 3, (SIDE, SIDE), ("red", "white")[n % 2]), f"ball {n}", fps=16)
    ball(1, size=(SIDE, SIDE))[0].save(data / "still.png")
    (data / "still.txt").write_text("a ball that stands still", encoding="utf-8")
    settings = validate_settings({
        "model": {"base": str(flow_configs / "wan"), "rank": 2, "resolution": SIDE, "frames": 5},
        "data": {"folder": str(data)},
        "play": {"sampler": "unipc", "steps": 2, "guidance": 2.0, "start": 0.8},
        "draw": {"times": "logit-normal"},
        "learn": {"updates": 2, "batch": 2},
        "memory": {"play_batch": 8, "precision": "bf16"},
        "judge": {"draws": 1, "captions": 1, "stop": False},
        "run": {"rounds": 2},
    })  # fmt: skip
    outcome = train(settings, tmp_path / "runs" / "wan", Quiet())
    assert len(outcome.rounds) == 2 and outcome.rounds[1]["policy_real"] > 0
    tensors, metadata = read_tensors(outcome.run.export_path)
    assert "diffusion_model.blocks.1.ffn.0.lora_B.weight" in tensors
    assert metadata["modelspec.architecture"] == "wan-2_1-text2video-1_3b/lora"
    again = load(flow_configs / "wan", init_lora=str(outcome.run.export_path))
    assert len(again.start) == 20
    assert {path.name for path in (outcome.run.folder / "samples").iterdir()} >= {"round-2.png", "round-2.webp"}


def test_random_weights_have_the_precisions_that_loaded_ones_have(flow_configs: Path):
    """Diffusers keeps norms and the time's embedding of a folder in fp32."""
    loaded, blank = (load(base, Levers("bf16")).net for base in (flow_configs / "wan", f"blank:{flow_configs / 'wan'}"))
    found = [{name: p.dtype for name, p in net.named_parameters()} for net in (loaded, blank)]
    assert found[0] == found[1] and set(found[0].values()) == {torch.float32, torch.bfloat16}
