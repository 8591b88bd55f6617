"""AnimateDiff on SD 1.5: its module's files, sampler, target and clips against diffusers' own pipeline; then a run on clips."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.load import validate_settings
from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.write import lay_out, write_lora
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.kinds import KINDS
from spinlite.families.load import load_family
from spinlite.families.motion_kinds import is_motion
from spinlite.families.names import module_shapes
from spinlite.lora.adapters import Slots
from spinlite.lora.apply import applied
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.tensors import Lora, Pair
from spinlite.memory.device import Device, Levers
from spinlite.methods.registry import METHODS
from spinlite.selfplay import train
from spinlite.training.batches import Batch
from spinlite.training.play import sample
from spinlite.training.step import step
from tests.clips import ball, captioned, noise_clips
from tests.families import tiny, tiny_motion
from tests.toy import Quiet

CAPTIONS = ["a red cat", "two dogs on a hill, at night"]
SIDE, FRAMES = 32, 2
CONDS: dict[str, Cond] = {}


@pytest.fixture(scope="module")
def base(tiny_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_motion.base(tiny_bases / "sd15", tmp_path_factory.mktemp("moving") / "base")


def load(base: Path, motion: Path | None = None, levers: Levers | None = None, **model: Any) -> Any:
    where = Device(torch.device("cpu"), "a test", levers or Levers())
    chosen: dict[str, Any] = {"frames": FRAMES, "resolution": SIDE} | model
    return load_family(Model(base=str(base), motion=str(motion or base), **chosen), where)


@pytest.fixture(scope="module")
def plain(base: Path) -> Any:
    """For tests that leave its network as it is."""
    return load(base)


@pytest.fixture
def family(base: Path) -> Any:
    return load(base)


@pytest.fixture(scope="module")
def pipeline(base: Path) -> Any:
    still: Any = StableDiffusionPipeline.from_pretrained(str(base))
    noise = DDIMScheduler.from_config(still.scheduler.config, beta_schedule="linear", timestep_spacing="linspace")
    adapter = MotionAdapter.from_pretrained(str(base / "motion_adapter"))
    pipe: Any = AnimateDiffPipeline(still.vae, still.text_encoder, still.tokenizer, still.unet, adapter, noise)  # pyright: ignore
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clips() -> list[Picture]:
    return noise_clips(2, FRAMES, SIDE)


def batch_of(family: Family) -> Batch:
    """Two clips. Captions are encoded once."""
    torch.manual_seed(1)
    latents = torch.randn(3, 2, *family.latent_shape)
    cond = CONDS.get(family.caption_hash) or CONDS.setdefault(family.caption_hash, family.encode_captions(CAPTIONS))
    return Batch(latents[0], latents[1], latents[2], torch.tensor([300, 800]), dict(cond))


def random_lora(family: Family, targets: str, rank: int = 2) -> Lora:
    shapes = {name: module_shapes(family.net)[name] for name in family.lora_targets[targets]}
    torch.manual_seed(0)
    return {
        f"unet.{name}": Pair(torch.randn(rank, *s[1:]) / 8, torch.randn(s[0], rank, *[1] * (len(s) - 2)) / 8)
        for name, s in shapes.items()
    }


def test_captions_latents_and_samples_are_those_of_the_pipeline(plain: Any, pipeline: Any, clips: list[Picture]):
    cond, empty = plain.encode_captions(CAPTIONS), plain.encode_captions(["", ""])
    theirs, _ = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
    assert_close(cond["prompt"], theirs, atol=1e-5, rtol=1e-5)
    x0 = plain.encode_pictures(clips)["x0"]
    assert x0.shape == (2, *plain.latent_shape) == (2, 4, FRAMES, 4, 4)
    pixels = pipeline.video_processor.preprocess_video([[p.image, *p.rest] for p in clips]).transpose(1, 2).flatten(0, 1)
    means = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert_close(x0, means.unflatten(0, (2, FRAMES)).transpose(1, 2), atol=1e-5, rtol=1e-5)
    noise = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    options: Any = {"prompt": CAPTIONS, "latents": noise, "num_frames": FRAMES, "height": SIDE, "width": SIDE}
    mine = noise
    for steps in (1, 3):
        mine = sample(plain, noise, cond, empty, Play(sampler="ddim", spacing="linspace", steps=steps, guidance=3.0))
        options |= {"num_inference_steps": steps, "guidance_scale": 3.0}
        assert_close(mine, pipeline(output_type="latent", **options).frames, atol=1e-5, rtol=1e-5)
    for frames, pixels in zip(plain.decode(mine), pipeline(output_type="np", **options).frames, strict=True):
        assert len(frames) == FRAMES
        levels = torch.stack([torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8) for f in frames]) / 255
        assert_close(levels.view(FRAMES, SIDE, SIDE, 3), torch.tensor(pixels), atol=3e-3, rtol=0)


def test_the_target_is_the_noise_of_the_pipelines_scheduler(plain: Family, pipeline: Any):
    b = batch_of(plain)
    x_t = plain.path.noise(b.real, b.eps, b.t)
    assert_close(x_t, pipeline.scheduler.add_noise(b.real, b.eps, b.t), atol=1e-5, rtol=1e-5)
    target = plain.path.target(b.real, b.eps, b.t)
    for i, t in enumerate(b.t):
        clean = pipeline.scheduler.step(target[i : i + 1], int(t), x_t[i : i + 1]).pred_original_sample
        assert_close(clean, b.real[i : i + 1], atol=1e-5, rtol=1e-5)


def test_a_picture_is_a_clip_of_one_frame_and_samples_of_the_vae_depend_on_names_alone(plain: Any, clips: list[Picture]):
    still = plain.encode_pictures([Picture(clip.image, clip.original_size, (0, 0)) for clip in clips])["x0"]
    assert_close(still[:, :, 0], plain.encode_pictures(clips)["x0"][:, :, 0], atol=1e-5, rtol=1e-5)
    [[one], _] = plain.decode(still)
    assert one.size == (SIDE, SIDE)
    means = plain.encode_pictures(clips)["x0"]
    first, again, other = (plain.encode_pictures(clips, names)["x0"] - means for names in (["a", "b"], ["a", "b"], ["b", "a"]))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[:, :, 0], first[:, :, 1])


def test_no_gradient_gradient_and_checkpointing_compute_the_same_bits_and_keep_less(family: Any):
    b = batch_of(family)
    with torch.no_grad():
        plain = family.denoise(b.real, b.t, b.cond)
    family.net.requires_grad_(True)
    kept = {}
    for on in (False, True, False):
        family.set_checkpointing(on)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            assert torch.equal(family.denoise(b.real, b.t, b.cond), plain)
        kept[on] = sum(sizes)
    assert kept[True] < 0.3 * kept[False]


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_base_computes_nearly_the_same(quantize: str, plain: Any, base: Path):
    smaller, b, near = load(base, levers=Levers(quantize=quantize)), batch_of(plain), {"int8": 0.1, "nf4": 0.7}[quantize]
    with torch.no_grad():
        expected, got = (family.denoise(b.real, b.t, b.cond) for family in (plain, smaller))
    assert 0 < (got - expected).norm() < near * expected.norm() and smaller.base_hash != plain.base_hash


def test_every_method_learns_on_clips_and_a_policy_that_is_its_opponent_ties(family: Family):
    slots = Slots(family.net, family.lora_targets["linear"], 4, 4.0, 0)
    for name, method in METHODS.items():
        found: dict[bool, Tensor] = {}
        for one_graph in (False, True)[: 2 if name == "seppo" else 1]:
            loss, errors = step(family, slots, method(), batch_of(family), one_graph, 1 if one_graph else None)
            found[one_graph] = torch.cat([p.grad.flatten() for p in slots.parameters() if p.grad is not None])
            assert loss.isfinite() and found[one_graph].any()
            for on in ("real", "fake"):
                if f"opponent_{on}" in errors and f"policy_{on}" in errors:
                    assert torch.equal(errors[f"policy_{on}"], errors[f"opponent_{on}"])
            for p in slots.parameters():
                p.grad = None
        assert (found.get(True, found[False]) - found[False]).norm() < 1e-4 * found[False].norm()


def test_attention_along_frames_is_torchs_own_and_takes_few_places_at_once(
    family: Any, base: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """CUDA's kernels end at a batch of 65,535, which is 16 clips of 64 x 64 places."""
    b = batch_of(family)
    with torch.no_grad():
        whole = family.denoise(b.real, b.t, b.cond)
        monkeypatch.setattr("spinlite.families.animatediff.AT_ONCE", 3)
        assert_close(family.denoise(b.real, b.t, b.cond), whole)
    monkeypatch.setattr(Device, "attention", lambda self, sizes: ("xformers", "a test"))
    processors = {name: type(made).__name__ for name, made in load(base).net.attn_processors.items()}
    assert {processors[name] for name in processors if is_motion(name)} == {"_AlongFrames"}
    assert {processors[name] for name in processors if not is_motion(name)} == {"XFormersAttnProcessor"}


@pytest.mark.parametrize(("targets", "layout"), [("all", "kohya"), ("motion", "diffusers")])
def test_its_lora_files_are_read_by_diffusers_pipeline(
    targets: str, layout: Any, base: Path, pipeline: Any, tmp_path: Path
):  # fmt: skip
    family = load(base, targets=targets)
    lora, path, b = random_lora(family, targets), tmp_path / "mine.safetensors", batch_of(family)
    tiny.save(path, lay_out(lora, family, layout, torch.float32)[0])
    with torch.no_grad():
        plain = family.denoise(b.real, b.t, b.cond)
        with applied(family.net, lora):
            expected = family.denoise(b.real, b.t, b.cond)
        pipeline.load_lora_weights(str(path))
        family.net = pipeline.unet
        got = family.denoise(b.real, b.t, b.cond)
        pipeline.unload_lora_weights()
    assert (got - expected).norm() < 1e-3 * (expected - plain).norm()


def test_a_motion_lora_has_the_names_that_other_programs_read_and_starts_a_run_of_its_kind(base: Path, tmp_path: Path):
    family = load(base, targets="motion")
    lora, path = random_lora(family, "motion"), tmp_path / "mine.safetensors"
    said = write_lora(path, lora, family, HeaderInfo("mine", family.export_metadata()), "animatediff", torch.float32)
    assert said.modules == len(lora) and said.step is not None and said.step < 1e-3  # read by AnimateDiff-Evolved's rules
    start = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor"
    assert {f"{start}.to_q_lora.down.weight", f"{start}.to_out_lora.up.weight"} <= load_file(path).keys()
    for layout in ("animatediff", "diffusers"):
        tiny.save(path, lay_out(lora, family, layout, torch.float32)[0])
        family.start_from(path)
        assert family.start.keys() == lora.keys()
        assert all(torch.allclose(family.start[name].change, pair.change, atol=1e-5) for name, pair in lora.items())
    with pytest.raises(SpinliteError, match="changes a motion module, but this run is for layers") as refused:
        load(base, init_lora=str(path))
    assert refused.value.fix == "add --set model.targets=motion, or use another LoRA"


def test_a_run_on_clips_ends_with_a_lora_for_sd_15(base: Path, tmp_path: Path):
    data = tmp_path / "clips"
    data.mkdir()
    for n in range(6):
        captioned(data / f"{n}.webp", ball(3, 1 + n % 3, (SIDE, SIDE), ("red", "white")[n % 2]), f"ball {n}", fps=8)
    ball(1, size=(SIDE, SIDE))[0].save(data / "still.png")
    (data / "still.txt").write_text("a ball that stands still", encoding="utf-8")
    settings = validate_settings({
        "model": {"base": str(base), "motion": str(base), "rank": 2, "frames": FRAMES, "resolution": SIDE},
        "data": {"folder": str(data)},
        "method": {"name": "seppo"},
        "play": {"sampler": "ddim", "steps": 1, "guidance": 2.0},
        "learn": {"updates": 1, "batch": 2},
        "memory": {"play_batch": 64, "cache_opponent": True},
        "judge": {"draws": 1, "captions": 1, "stop": False},
        "run": {"rounds": 1},
    })  # fmt: skip
    watch = Quiet()
    outcome = train(settings, tmp_path / "runs" / "moving", watch)
    assert len(outcome.rounds) == 1 and outcome.rounds[0]["policy_real"] > 0 and outcome.rounds[0]["motion"] > 0
    assert f"note: {KINDS['animatediff'].note}" in watch.said
    assert {path.name for path in (outcome.run.folder / "samples").iterdir()} >= {"round-1.png", "round-1.webp"}
    where = Device(torch.device("cpu"), "a test", Levers())
    still = load_family(Model(base=str(base), init_lora=str(outcome.run.export_path)), where)
    assert len(still.start) == 48 and not still.clips
