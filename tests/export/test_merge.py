"""A LoRA merged into a whole model: the file has the base's keys, and draws what the base draws with the LoRA."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor

from spinlite.config.settings import Model, Play
from spinlite.errors import SpinliteError
from spinlite.export import merge as merging
from spinlite.export.merge import Base, lora_of_file, merge
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.names import kohya_name
from spinlite.lora.apply import applied
from spinlite.lora.layouts import to_kohya
from spinlite.lora.tensors import Pair, norm
from spinlite.runs.store import read_tensors
from spinlite.training.animation import strip
from spinlite.training.play import sample
from tests.families import tiny
from tests.lora.test_start import CPU, KIND, lora_of

LAYER = "text_model.encoder.layers.0."
ENCODERS = {"sd15": {"text_encoder": 24}, "sd21": {"text_encoder": 40}, "sdxl": {"text_encoder": 24, "text_encoder_2": 40}}


def quiet(done: int, of: int) -> None:
    assert 0 < done <= of


def load(base: Path) -> Family:
    prediction = "eps" if base.stem == "sd21" or base.name == "m.safetensors" else "auto"
    return load_family(Model(base=str(base), prediction=prediction), CPU)  # pyright: ignore[reportArgumentType]


def whole_lora(kind: str, net: torch.nn.Module) -> dict[str, Pair]:
    """Attention, feed-forward and convolutions of the UNet; of each text encoder a key, an output and a feed-forward layer."""
    lora = {name: pair for name, pair in lora_of(net, 24).items() if name.startswith("unet.")}
    for part, width in ENCODERS[kind].items():
        for leaf, (out, into) in {"self_attn.k_proj": (1, 1), "self_attn.out_proj": (1, 1), "mlp.fc1": (2, 1)}.items():
            lora[f"{part}.{LAYER}{leaf}"] = Pair(torch.randn(2, into * width), torch.randn(out * width, 2) * 0.1)
    return lora


def saved(path: Path, kind: str, lora: dict[str, Pair]) -> Path:
    of: Any = {**KIND, "sd21": "sd2"}[kind]
    return tiny.save(path, to_kohya(lora, lambda name: kohya_name(name, of), torch.float32)[0])


def seen(made: Family) -> Tensor:
    """What a model predicts, captions encoded by its own text encoders."""
    torch.manual_seed(0)
    with torch.no_grad():
        return made.denoise(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), made.encode_captions(["a red fox", "ünï"]))


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_merged_model_predicts_what_the_base_does_with_the_lora(kind: str, form: str, configs: Path, tmp_path: Path):
    base = configs / (f"{kind}.safetensors" if form == "file" else kind)
    plain, before = load(base), load(base)
    lora = whole_lora(kind, plain.net)
    path = saved(tmp_path / "mine.safetensors", kind, lora)
    plain.start_from(path)  # its text encoders' part is in the captions from here on
    with applied(plain.net, lora):
        wanted = seen(plain)
    found = merge(*_into(path, base), tmp_path / "m.safetensors", None, {}, quiet)
    made = load(tmp_path / "m.safetensors")
    effect = (seen(before) - wanted).norm()
    assert effect > 0.01 * wanted.norm() and (seen(made) - wanted).norm() < 1e-3 * effect
    with applied(before.net, lora):
        assert (seen(before) - wanted).norm() > 1e-2 * effect  # without the text encoders' part
    assert found.modules >= len(lora) and found.rounding < 1e-5
    whole = load_file(configs / f"{kind}.safetensors")
    keys = load_file(tmp_path / "m.safetensors").keys()
    unused = {key for key in whole if "resblocks.23" in key or (kind == "sd21" and "text_projection" in key)}
    assert keys == whole.keys() if form == "file" else keys == whole.keys() - unused


@pytest.mark.parametrize(("kind", "pipeline"), [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_live_loaded_by_diffusers_and_merged_draw_the_same_picture(kind: str, pipeline: Any, configs: Path, tmp_path: Path):
    made = load(configs / kind)
    lora = whole_lora(kind, made.net)
    path, noise = saved(tmp_path / "mine.safetensors", kind, lora), torch.randn(1, 4, 8, 8)
    merge(*_into(path, configs / f"{kind}.safetensors"), tmp_path / "m.safetensors", None, {}, quiet)
    hot = pipeline.from_pretrained(configs / kind)
    hot.load_lora_weights(str(path))
    merged = pipeline.from_single_file(str(tmp_path / "m.safetensors"), config=str(configs / kind), local_files_only=True)
    play = Play(sampler="ddim", steps=4, guidance=3.0)
    told: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 64, "negative_prompt": ""}

    def pixels(picture: Image) -> Tensor:
        return torch.tensor(list(picture.tobytes())).float()

    def live() -> Tensor:
        drawn = made.decode(sample(made, noise, made.encode_captions(["a fox"]), made.encode_captions([""]), play))
        return pixels(strip(drawn[0]))

    without = live()
    made.free()
    made.start_from(path)
    with applied(made.net, lora):
        wanted = live()
    effect = (without - wanted).abs().mean()
    for pipe in (hot, merged):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
        pipe.set_progress_bar_config(disable=True)
        drawn = pixels(pipe("a fox", latents=noise, **told).images[0])
        assert (drawn - wanted).abs().mean() < 0.05 * effect


def _into(path: Path, base: Path) -> tuple[dict[str, Pair], Base]:
    made = Base(str(base), torch.float32)
    return dict(lora_of_file(path, made)[0]), made


def test_all_that_is_not_changed_is_the_bases_own(configs: Path, tmp_path: Path):
    """Every other tensor, its precision, marks and header; averages change alike; the hash is that of what was written."""
    weights = {k: v.half() if "first_stage" in k else v for k, v in tiny.original(configs / "sd15").items()}
    one = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    ema = "model_ema.diffusion_modelmiddle_block1transformer_blocks0attn1to_qweight"
    weights |= {"v_pred": torch.ones(1, dtype=torch.uint8), "ids": torch.arange(3)[None], ema: weights[one] * 2}
    said = {"modelspec.title": "T", "modelspec.thumbnail": "data:", "sshs_model_hash": "0"}
    base = tiny.save(tmp_path / "b.safetensors", weights, said)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = Pair(torch.randn(2, 32), torch.randn(32, 2))
    made = Base(str(base), torch.float32)
    found = merge({name: pair}, made, tmp_path / "m.safetensors", None, {"lora": "ünï"}, quiet)
    tensors, metadata = read_tensors(tmp_path / "m.safetensors")
    assert tensors.keys() == weights.keys() and found.tensors == len(weights)
    for key, value in weights.items():
        wanted = value + pair.change if key in (one, ema) else value
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], wanted), key
    assert metadata["modelspec.title"] == "T" and not {"modelspec.thumbnail", "sshs_model_hash"} & metadata.keys()
    assert json.loads(metadata["spinlite.merged"]) == {"lora": "ünï", "base": "b"}
    content = (tmp_path / "m.safetensors").read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"


def test_rounding_is_measured_and_other_precisions_can_be_had(configs: Path, tmp_path: Path):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = Pair(torch.randn(2, 32), torch.randn(32, 2)).times(1e-4)
    base = Base(str(configs / "sd15.safetensors"), torch.float32)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    exact = base.get(key) + pair.change
    for dtype in (torch.float16, torch.bfloat16):
        found = merge({name: pair}, base, tmp_path / "m.safetensors", dtype, {}, quiet)
        tensors = load_file(tmp_path / "m.safetensors")
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {dtype}
        off = (tensors[key].double() - exact.double()).norm().item() / norm(pair)
        assert found.rounding == pytest.approx(off, rel=1e-3) and found.rounding > 0.05


@pytest.mark.parametrize(("share", "lost"), [(1e-2, 0.02), (3e-4, 0.53)])
def test_fp16_weights_lose_of_a_small_change_what_the_page_says(share: float, lost: float):
    """However it gets there: merged into a file, or added by a program that keeps its weights in fp16."""
    torch.manual_seed(0)
    weight = (torch.randn(1000, 1000) / 30).half()
    change = torch.randn(1000, 1000) * weight.float().std() * share
    got = (weight.float() + change).half().float() - weight.float()
    assert ((got - change).norm() / change.norm()).item() == pytest.approx(lost, rel=0.25)


def test_what_can_not_be_merged_is_named_and_nothing_is_left(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = Base(str(configs / "sd15.safetensors"), torch.float32)
    to = tmp_path / "out" / "m.safetensors"
    for name, shape, words in (
        ("unet.down_blocks.9.attentions.0.proj_in", (4, 4), "has no unet.down_blocks.9"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", (32, 8), r"\(32, 8\) in the LoRA, but \(32, 32\)"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", (24, 24), "has no text_encoder_2"),
    ):
        with pytest.raises(SpinliteError, match=words):
            merge({name: Pair(torch.ones(1, shape[1]), torch.ones(shape[0], 1))}, base, to, None, {}, quiet)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {name: Pair(torch.ones(1, 32), torch.ones(32, 1))}

    with pytest.raises(SpinliteError, match=r"holds numbers too large for float16\nfix: add --dtype fp32"):
        merge({name: lora[name].times(1e6)}, base, to, torch.float16, {}, quiet)
    weights = load_file(configs / "sd15.safetensors")
    for key in (
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "first_stage_model.quant_conv.bias",
    ):
        nan = Base(str(tiny.save(tmp_path / "nan.safetensors", weights | {key: weights[key] * torch.nan})), torch.float32)
        with pytest.raises(SpinliteError, match=rf"nan\.safetensors is broken: {key} holds NaN"):
            merge(lora, nan, to, None, {}, quiet)

    def cut(done: int, of: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(lora, base, to, None, {}, cut)
    assert not list(to.parent.iterdir())
    whole = merging._changed_tensor
    with monkeypatch.context() as patch, pytest.raises(SpinliteError, match="does not hold what was merged"):

        def broken(weight: Tensor, spots: Any) -> Tensor:
            return whole(weight, spots) * (1.001 if spots and to.exists() else 1)

        patch.setattr(merging, "_changed_tensor", broken)
        merge(lora, base, to, None, {}, quiet)
