"""FLUX.2 [klein]: files, sampler, target and captions against diffusers' own pipeline; then the whole way to a LoRA file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.load import validate_settings
from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.merge import Base, merge
from spinlite.export.write import write_lora
from spinlite.families.family import Cond, Family, Picture
from spinlite.families.flow_layout import original_tensors
from spinlite.families.kinds import KINDS
from spinlite.families.load import load_family, require_base, token_counter
from spinlite.families.names import module_shapes
from spinlite.lora.adapters import Slots
from spinlite.lora.apply import applied
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.resize import resize
from spinlite.lora.tensors import Pair, lora_of_snapshot
from spinlite.memory.device import Device, Levers
from spinlite.methods.registry import METHODS
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.animation import strip
from spinlite.training.batches import Batch
from spinlite.training.play import sample
from spinlite.training.step import step
from tests.families import tiny, tiny_klein
from tests.toy import Quiet

CAPTIONS = ["a red cat", "two dogs on a hill, at night"]
SIDE = 64
CONDS: dict[str, Cond] = {}


def load(base: Path, levers: Levers | None = None, **model: Any) -> Family:
    where = Device(torch.device("cpu"), "a test", levers or Levers())
    return load_family(Model(base=str(base), resolution=SIDE, **model), where)


@pytest.fixture
def family(flow_configs: Path) -> Family:
    return load(flow_configs / "klein-4b")


@pytest.fixture(scope="session")
def pipeline(flow_bases: Path) -> Any:
    pipe: Any = Flux2KleinPipeline.from_pretrained(str(flow_bases / "klein-4b"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    made = torch.randint(0, 256, (2, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.fromarray(pixels.numpy()) for pixels in made]
    return [Picture(image, image.size, (0, 0)) for image in images]


def batch_of(family: Family) -> Batch:
    """Two samples. Captions are encoded once for every family of the same text encoder."""
    torch.manual_seed(1)
    latents = torch.randn(3, 2, *family.latent_shape)
    cond = CONDS.get(family.caption_hash) or CONDS.setdefault(family.caption_hash, family.encode_captions(CAPTIONS))
    return Batch(latents[0], latents[1], latents[2], torch.tensor([0.3, 0.8]), dict(cond))


def test_captions_latents_and_samples_are_those_of_the_pipeline(family: Family, pipeline: Any, pictures: list[Picture]):
    cond, empty = family.encode_captions(CAPTIONS), family.encode_captions(["", ""])
    theirs, _ = pipeline.encode_prompt(CAPTIONS)
    assert_close(cond["prompt"], theirs, atol=1e-5, rtol=1e-5)
    x0 = family.encode_pictures(pictures)["x0"]
    pixels = pipeline.image_processor.preprocess([p.image for p in pictures])
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
    b, scheduler = batch_of(family), pipeline.scheduler
    scheduler.set_timesteps(sigmas=[0.8], mu=0.0)
    x_t = family.path.noise(b.real, b.eps, torch.full((2,), 0.8))
    assert_close(x_t, scheduler.scale_noise(b.real, scheduler.timesteps[:1], b.eps), atol=1e-5, rtol=1e-5)
    target = family.path.target(b.real, b.eps, torch.full((2,), 0.8))
    assert_close(scheduler.step(target, scheduler.timesteps[0], x_t).prev_sample, b.real, atol=1e-5, rtol=1e-5)


def test_files_of_comfyui_are_the_folder(family: Family, pictures: list[Picture], flow_configs: Path, tmp_path: Path):
    for prefix in ("", "model.diffusion_model."):
        net = tiny_klein.files(flow_configs / "klein-4b", tmp_path / f"comfy{len(prefix)}", prefix)
        other = load(net)
        both = zip(family.net.state_dict().values(), other.net.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
    assert torch.equal(other.encode_captions(CAPTIONS)["prompt"], family.encode_captions(CAPTIONS)["prompt"])
    assert torch.equal(other.encode_pictures(pictures)["x0"], family.encode_pictures(pictures)["x0"])
    shutil.copy(net.parents[1] / "vae" / "flux2-vae.safetensors", net.parents[1] / "vae" / "another.safetensors")
    with pytest.raises(SpinliteError, match=r"2 files fit: another\.safetensors, flux2-vae") as refused:
        load(net)
    assert refused.value.fix == "add --set model.vae=FILE.safetensors"
    named = load(net, vae=str(net.parents[1] / "vae" / "another.safetensors"))
    assert named.picture_hash == other.picture_hash
    (net.parents[1] / "text_encoders" / "qwen_3_4b.safetensors").unlink()
    with pytest.raises(SpinliteError, match="needs a text encoder, such as qwen_3_4b"):
        load(net, vae=str(net.parents[1] / "vae" / "another.safetensors"))


def test_no_gradient_gradient_and_checkpointing_compute_the_same_bits(family: Family):
    b = batch_of(family)
    with torch.no_grad():
        plain = family.denoise(b.real, b.t, b.cond)
    for parameter in family.net.parameters():
        parameter.requires_grad_(True)
    for on in (False, True):
        family.set_checkpointing(on)
        assert torch.equal(family.denoise(b.real, b.t, b.cond), plain)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_it_and_a_policy_that_is_its_opponent_ties(method: str, family: Family):
    slots = Slots(family.net, family.lora_targets["linear"], 4, 4.0, 0)
    found: dict[bool, list[Tensor]] = {}
    for one_graph in (False, True):
        loss, errors = step(family, slots, METHODS[method](), batch_of(family), one_graph, 1 if one_graph else None)
        found[one_graph] = [p.grad for p in slots.parameters() if p.grad is not None]
        assert loss.isfinite() and len(found[one_graph]) > 0
        for name in ("real", "fake"):
            if f"opponent_{name}" in errors and f"policy_{name}" in errors:
                assert torch.equal(errors[f"policy_{name}"], errors[f"opponent_{name}"])
        for p in slots.parameters():
            p.grad = None
    for a, b in zip(found[False], found[True], strict=True):
        assert_close(a, b, atol=1e-5 * max(1.0, a.abs().max().item()), rtol=1e-3)


def test_a_lora_file_is_read_by_diffusers_and_in_every_naming(
    family: Family, pipeline: Any, flow_configs: Path, tmp_path: Path
):
    slots = Slots(family.net, family.lora_targets["linear"], 4, 8.0, 0)
    for i, p in enumerate(slots.parameters()):
        torch.nn.init.normal_(p, 0.0, 0.1, generator=torch.Generator().manual_seed(i))
    lora = lora_of_snapshot(slots.state("policy"), slots.scale)
    path, plain = tmp_path / "mine.safetensors", load(flow_configs / "klein-4b")
    said = write_lora(path, lora, plain, HeaderInfo("mine", plain.export_metadata()), "peft", torch.float32)
    assert said.modules == len(lora) == 16 and said.step is not None and said.step < 1e-3
    tensors = load_file(path)
    assert all(key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    b = batch_of(family)
    pipeline.load_lora_weights(str(path))
    with torch.no_grad():
        expected, own = family.denoise(b.real, b.t, b.cond), plain.net
        plain.net = pipeline.transformer
        assert_close(plain.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
        plain.net = own
    pipeline.unload_lora_weights()
    native = KINDS["klein-4b"].files.native  # pyright: ignore[reportOptionalMemberAccess]
    for naming in ("comfy", "kohya", "bare"):
        there = tiny.save(tmp_path / f"{naming}.safetensors", renamed(tensors, naming, native))
        plain.start_from(there)
        assert plain.start.keys() == lora.keys()
        assert all(torch.allclose(plain.start[name].change, pair.change, atol=1e-5) for name, pair in lora.items())


def renamed(tensors: dict[str, Tensor], naming: str, native: Any) -> dict[str, Tensor]:
    """The tensors as other programs name them. Three layers in one matrix become one LoRA of three times the rank."""
    if naming == "bare":
        return {key.removeprefix("transformer."): value for key, value in tensors.items()}
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for key, down in tensors.items():
        module = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
        if key.endswith("lora_B.weight"):
            continue
        up, place = tensors[key.replace("lora_A", "lora_B")], native(f"{module}.weight")
        name = place.key.removesuffix(".weight")
        if place.third is None:
            found |= _named(name, down, up, naming)
        else:
            thirds.setdefault(name, {})[place.third] = (down, up)
    for name, parts in thirds.items():
        down = torch.cat([parts[i][0] for i in range(3)])
        up = torch.block_diag(*(parts[i][1] for i in range(3)))
        found |= _named(name, down, up, naming)
    return found


def _named(name: str, down: Tensor, up: Tensor, naming: str) -> dict[str, Tensor]:
    if naming == "comfy":
        return {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    key = f"lora_unet_{name.replace('.', '_')}"
    alpha = torch.tensor(float(len(down)))
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}


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
    with pytest.raises(SpinliteError, match="is distilled") as refused:
        require_base(Model(base=str(distilled), resolution=SIDE))
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


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_base_and_encoder_compute_nearly_the_same(quantize: str, family: Family, flow_configs: Path):
    smaller = load(flow_configs / "klein-4b", Levers(quantize=quantize, encoders=quantize))
    b, near = batch_of(family), {"int8": 0.05, "nf4": 0.5}[quantize]
    expected, got = family.denoise(b.real, b.t, b.cond), smaller.denoise(b.real, b.t, b.cond)
    assert 0 < (got - expected).norm() < near * expected.norm()
    prompt, near = smaller.encode_captions(CAPTIONS)["prompt"], {"int8": 0.3, "nf4": 2.0}[quantize]  # 28 random layers
    assert 0 < (prompt - b.cond["prompt"]).norm() < near * prompt.norm()
    assert smaller.caption_hash != family.caption_hash and smaller.base_hash != family.base_hash


@pytest.mark.parametrize("form", ["folder", "files"])
def test_a_merged_network_does_what_the_base_does_with_the_lora(form: str, family: Family, flow_configs: Path, tmp_path: Path):
    base = flow_configs / "klein-4b"
    base = tiny_klein.files(base, tmp_path / "comfy") if form == "files" else base
    shapes = {name: module_shapes(family.net)[name] for name in family.lora_targets["linear"]}
    torch.manual_seed(0)
    lora = {f"unet.{name}": Pair(torch.randn(2, s[1]) / 8, torch.randn(s[0], 2) / 8) for name, s in shapes.items()}
    b = batch_of(family)
    with applied(family.net, lora):
        wanted = family.denoise(b.real, b.t, b.cond)
    tiny_klein.files(flow_configs / "klein-4b", tmp_path / "merged")  # for its VAE and text encoder
    to = tmp_path / "merged" / "diffusion_models" / "flux-2-klein-base-4b.safetensors"
    merge(lora, Base(str(base), torch.float32), to, None, {}, lambda done, whole: None)
    assert_close(load(to).denoise(b.real, b.t, b.cond), wanted, atol=1e-4, rtol=1e-4)


def test_a_run_on_it_ends_with_a_lora(flow_configs: Path, swatches: Path, tmp_path: Path):
    for path in sorted(swatches.iterdir())[12:]:  # keeps 6 pictures with their captions
        path.unlink()
    settings = validate_settings({
        "model": {"base": str(flow_configs / "klein-4b"), "rank": 2, "resolution": SIDE},
        "data": {"folder": str(swatches), "upscale": 4.0},
        "play": {"sampler": "euler", "steps": 2, "guidance": 2.0},
        "draw": {"times": "logit-normal"},
        "learn": {"updates": 2, "batch": 2},
        "memory": {"play_batch": 8},
        "judge": {"draws": 1, "prompts": 1, "stop": False},
        "run": {"rounds": 1},
    })  # fmt: skip
    outcome = train(settings, tmp_path / "runs" / "klein", Quiet())
    assert len(outcome.rounds) == 1 and outcome.rounds[0]["policy_real"] > 0
    tensors, metadata = read_tensors(outcome.run.export_path)
    assert "transformer.single_transformer_blocks.1.attn.to_qkv_mlp_proj.lora_B.weight" in tensors
    assert metadata["modelspec.architecture"] == "flux.2-klein-4b/lora"
    resize(outcome.run.export_path, 1, tmp_path / "smaller.safetensors")
    again = load(flow_configs / "klein-4b", init_lora=str(tmp_path / "smaller.safetensors"))
    assert len(again.start) == 16 and {pair.rank for pair in again.start.values()} == {1}
