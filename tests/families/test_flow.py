"""Flow models of every kind: files, gradients, methods, and the whole way to a LoRA file that others read."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.load import validate_settings
from spinlite.errors import SpinliteError
from spinlite.export.merge import Base, merge
from spinlite.export.write import write_lora
from spinlite.families.family import Family
from spinlite.families.kinds import KINDS
from spinlite.families.load import note_of
from spinlite.lora.adapters import Slots
from spinlite.lora.apply import applied
from spinlite.lora.metadata import HeaderInfo
from spinlite.lora.resize import resize
from spinlite.memory.device import Levers
from spinlite.methods.registry import METHODS
from spinlite.methods.spin import SPIN
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.step import step
from tests.families import tiny
from tests.families.flows import CAPTIONS, SIDE, TINY, batch_of, load, pictures, random_lora, renamed
from tests.reads import NothingRead
from tests.toy import Quiet


@pytest.fixture(params=TINY)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(kind: str, flow_configs: Path) -> Path:
    return flow_configs / kind


@pytest.fixture
def family(base: Path) -> Family:
    return load(base)


def test_files_of_comfyui_are_the_folder(kind: str, family: Family, base: Path, tmp_path: Path):
    maker = TINY[kind]
    for prefix in ("net.", "", "model.diffusion_model."):
        net = maker.files(base, tmp_path / f"comfy{len(prefix)}", prefix)
        other = load(net)
        both = zip(family.net.state_dict().values(), other.net.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
    for name, value in family.encode_captions(CAPTIONS).items():
        assert torch.equal(other.encode_captions(CAPTIONS)[name], value)
    assert torch.equal(other.encode_pictures(pictures())["x0"], family.encode_pictures(pictures())["x0"])
    vae, text = (net.parents[1] / f"{name}.safetensors" for name in (f"vae/{maker.vae}", f"text_encoders/{maker.text}"))
    shutil.copy(vae, vae.with_name("another.safetensors"))
    assert load(net).picture_hash == other.picture_hash  # the one with the published name
    vae.rename(vae.with_name("a-third.safetensors"))
    with pytest.raises(SpinliteError, match=r"2 files fit: a-third\.safetensors, another") as refused:
        load(net)
    assert refused.value.fix == "add --set model.vae=FILE.safetensors"
    named = load(net, vae=str(vae.with_name("another.safetensors")))
    assert named.picture_hash == other.picture_hash and named.caption_hash == other.caption_hash
    text.unlink()
    with pytest.raises(SpinliteError, match=f"needs a text encoder, such as {maker.text}"):
        load(net, vae=str(vae.with_name("another.safetensors")))


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
    found: dict[bool, Tensor] = {}
    for one_graph in (False, True):
        batch = batch_of(family)
        with NothingRead():
            loss, errors = step(family, slots, METHODS[method](), batch, one_graph, 1 if one_graph else None)
        found[one_graph] = torch.cat([p.grad.flatten() for p in slots.parameters() if p.grad is not None])
        assert loss.isfinite() and found[one_graph].any()
        for name in ("real", "fake"):
            if f"opponent_{name}" in errors and f"policy_{name}" in errors:
                assert torch.equal(errors[f"policy_{name}"], errors[f"opponent_{name}"])
        for p in slots.parameters():
            p.grad = None
    assert (found[True] - found[False]).norm() < 1e-4 * found[False].norm()


@pytest.mark.parametrize(("quantize", "targets"), [("none", "linear"), ("none", "all"), ("int8", "linear")])
def test_in_bf16_its_gradient_is_nearly_that_in_fp32(base: Path, quantize: str, targets: str, tmp_path: Path):
    """Diffusers keeps some weights of a folder in fp32 whatever is asked for."""
    found: list[Tensor] = []
    for precision in ("fp32", "bf16"):
        family = load(base, Levers(precision, quantize))
        slots = Slots(family.net, family.lora_targets[targets], 4, 4.0, 0)
        batch = batch_of(family)
        _, errors = step(family, slots, SPIN(), batch, False)
        assert torch.equal(errors["policy_real"], errors["opponent_real"])
        assert torch.equal(errors["policy_fake"], errors["opponent_fake"])
        for p in slots.parameters():
            p.grad = None
        torch.manual_seed(5)
        moved = {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state("policy").items()}
        slots.load("policy", moved)
        step(family, slots, SPIN(beta=30.0), batch, False)
        found.append(torch.cat([p.grad.flatten() for p in slots.parameters() if p.grad is not None]))
    if quantize == "none":
        half = load(base, Levers("bf16"))
        path = tmp_path / "mine.safetensors"
        said = write_lora(path, random_lora(half), half, HeaderInfo("mine", half.export_metadata()), "peft", torch.float16)
        assert said.step is not None and said.step < 0.2
    assert found[0].norm() > 0 and (found[1] - found[0]).norm() < 0.1 * found[0].norm()


def test_a_lora_file_is_read_by_diffusers_and_in_every_naming(kind: str, family: Family, base: Path, tmp_path: Path):
    lora, path = random_lora(family), tmp_path / "mine.safetensors"
    said = write_lora(path, lora, family, HeaderInfo("mine", family.export_metadata()), "peft", torch.float32)
    assert said.modules == len(lora) == TINY[kind].modules and said.step is not None and said.step < 1e-3
    tensors = load_file(path)
    start = TINY[kind].learns.split(".")[0] + "."
    assert all(key.startswith(start) and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    b = batch_of(family)
    with torch.no_grad():
        with applied(family.net, lora):
            expected = family.denoise(b.real, b.t, b.cond)
        assert (expected - family.denoise(b.real, b.t, b.cond)).norm() > 0.01 * expected.norm()
        with family.with_lora_file(path, 1.0):
            assert_close(family.denoise(b.real, b.t, b.cond), expected, atol=1e-4, rtol=1e-4)
    for naming in ("diffusers", "bare", "comfy", "kohya"):
        there = tiny.save(tmp_path / f"{naming}.safetensors", renamed(kind, lora, naming))
        family.start_from(there)
        assert family.start.keys() == lora.keys()
        assert all(torch.allclose(family.start[name].change, pair.change, atol=1e-5) for name, pair in lora.items())


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_base_and_encoder_compute_nearly_the_same(quantize: str, family: Family, base: Path):
    smaller = load(base, Levers(quantize=quantize, encoders=quantize))
    b, near = batch_of(family), {"int8": 0.1, "nf4": 0.7}[quantize]
    expected, got = family.denoise(b.real, b.t, b.cond), smaller.denoise(b.real, b.t, b.cond)
    assert 0 < (got - expected).norm() < near * expected.norm()
    prompt, near = smaller.encode_captions(CAPTIONS)["prompt"], {"int8": 0.3, "nf4": 2.0}[quantize]  # many random layers
    assert 0 < (prompt - b.cond["prompt"]).norm() < near * prompt.norm()
    assert smaller.caption_hash != family.caption_hash and smaller.base_hash != family.base_hash


@pytest.mark.parametrize("form", ["folder", "files"])
def test_a_merged_network_does_what_the_base_does_with_the_lora(
    form: str, kind: str, family: Family, base: Path, tmp_path: Path
):
    files, lora, b = TINY[kind].files, random_lora(family), batch_of(family)
    with applied(family.net, lora):
        wanted = family.denoise(b.real, b.t, b.cond)
    to = files(base, tmp_path / "merged")  # for its VAE and text encoder
    source = files(base, tmp_path / "comfy") if form == "files" else base
    merge(lora, Base(str(source), torch.float32), to, None, {}, lambda done, whole: None)
    merged = load(to)
    assert_close(merged.denoise(b.real, b.t, b.cond), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.encode_captions(CAPTIONS)["prompt"], b.cond["prompt"])


def test_a_run_on_it_ends_with_a_lora(kind: str, base: Path, swatches: Path, tmp_path: Path):
    for path in sorted(swatches.iterdir())[12:]:  # keeps 6 pictures with their captions
        path.unlink()
    settings = validate_settings({
        "model": {"base": str(base), "rank": 2, "resolution": SIDE},
        "data": {"folder": str(swatches), "upscale": 4.0},
        "play": {"sampler": "euler", "steps": 2, "guidance": 2.0},
        "draw": {"times": "logit-normal"},
        "learn": {"updates": 2, "batch": 2},
        "memory": {"play_batch": 8},
        "judge": {"draws": 1, "prompts": 1, "stop": False},
        "run": {"rounds": 1},
    })  # fmt: skip
    watch = Quiet()
    outcome = train(settings, tmp_path / "runs" / "flow", watch)
    assert f"note: {KINDS[kind].note}" in watch.said and note_of(settings.model) == KINDS[kind].note
    assert len(outcome.rounds) == 1 and outcome.rounds[0]["policy_real"] > 0
    tensors, metadata = read_tensors(outcome.run.export_path)
    assert f"{TINY[kind].learns}.lora_B.weight" in tensors
    assert metadata["modelspec.architecture"] == TINY[kind].architecture
    resize(outcome.run.export_path, 1, tmp_path / "smaller.safetensors")
    again: Any = load(base, init_lora=str(tmp_path / "smaller.safetensors"))
    assert len(again.start) == TINY[kind].modules and {pair.rank for pair in again.start.values()} == {1}
