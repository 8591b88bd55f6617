"""Whole models in one file: 8-bit weights with scales, tensors that nothing reads, NaN, and what other files are called."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.families.open import open_checkpoint
from spinlite.families.schedule import resolve_prediction
from spinlite.memory import device
from tests.families import tiny
from tests.families.test_checkpoint import CPU, PARTS, load

NET = "model.diffusion_model."
FP8 = torch.float8_e4m3fn


def scaled(tensors: dict[str, Tensor], ending: str, rows: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the same weights in 8 bits, with scales beside them; what they stand for). Matrices alone are scaled, as programs do."""
    stored, meant = dict(tensors), dict(tensors)
    for key, value in tensors.items():
        if key.endswith("proj.weight") or key.endswith(("to_q.weight", "fc1.weight")):
            largest = value.abs().flatten(1).amax(1) if rows else value.abs().max()
            scale = (largest / 448).float()
            by = scale.view(-1, *[1] * (value.ndim - 1)) if rows else scale
            stored[key] = (value / by).to(FP8)
            stored[key.replace(".weight", ending)] = scale
            meant[key] = stored[key].float() * by
    return stored, meant


@pytest.mark.parametrize(("ending", "rows"), [(".scale_weight", False), (".weight_scale", False), (".weight_scale", True)])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_scales_beside_8_bit_weights_are_applied(kind: str, ending: str, rows: bool, configs: Path, tmp_path: Path):
    stored, meant = scaled(load_file(configs / f"{kind}.safetensors"), ending, rows)
    scales = [key for key in stored if key.endswith(ending)]
    assert len(scales) > 10
    marks = {f"{NET}scaled_fp8": torch.zeros(2).to(FP8), f"{scales[0].removesuffix(ending)}.input_scale": torch.ones(())}
    here = open_checkpoint(str(tiny.save(tmp_path / "fp8.safetensors", stored | marks)))
    there = open_checkpoint(str(tiny.save(tmp_path / "fp32.safetensors", meant)))
    for part in PARTS[kind]:
        found, expected = (x.load(part, torch.float32).state_dict() for x in (here, there))
        assert found.keys() == expected.keys()
        for key in found:
            assert_close(found[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    "key",
    [
        "input_blocks.1.1.proj_in.weight.absmax", "input_blocks.1.1.ip_adapter.weight", "input_blocks.99.0.op.weight",
        "input_blocks.0.0.lora.weight", "diffusion_model.x", "input_blocks.1.1.proj_in.weight_scale_2",
    ],
)  # fmt: skip
def test_tensors_of_the_network_that_nothing_would_read_are_refused(key: str, configs: Path, tmp_path: Path):
    whole = load_file(configs / "sd15.safetensors") | {NET + key: torch.zeros(3)}
    with pytest.raises(
        SpinliteError, match=r"has 1 tensors in its network \(UNet\) that spinlite can't read, e\.g\. " + NET + key
    ):
        open_checkpoint(str(tiny.save(tmp_path / "x.safetensors", whole)))


def test_scales_of_blocks_of_a_weight_are_refused(configs: Path, tmp_path: Path):
    whole, key = load_file(configs / "sdxl.safetensors"), f"{NET}middle_block.1.proj_in"
    whole[f"{key}.weight_scale"] = torch.ones(len(whole[f"{key}.weight"]), 2)
    with pytest.raises(SpinliteError, match=rf"can't read, e\.g\. {key}\.weight_scale"):
        open_checkpoint(str(tiny.save(tmp_path / "x.safetensors", whole)))


def test_other_tensors_that_nothing_reads_are_named_and_what_training_leaves_is_not(configs: Path, tmp_path: Path):
    usual = ["model_ema.decay", "alphas_cumprod", "betas", "denoiser.sigmas", "posterior_variance", "v_pred", "logvar"]
    usual += ["first_stage_model.loss.perceptual_weight", "cond_stage_model.logit_scale"]
    whole = load_file(configs / "sd15.safetensors")
    plain = tiny.save(tmp_path / "plain.safetensors", whole | {key: torch.zeros(1) for key in usual})
    assert open_checkpoint(str(plain)).unread == []
    odd = {"embedding_manager.x": torch.zeros(1), "first_stage_model.decoder.adapter.up": torch.zeros(1)}
    made = load(tiny.save(tmp_path / "odd.safetensors", whole | odd))
    assert made.title.endswith("without 2 tensors that are no part of such a model, e.g. embedding_manager.x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("part", "key"), [
    ("unet", f"{NET}input_blocks.0.0.weight"), ("vae", "first_stage_model.decoder.conv_in.weight"),
    ("text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.weight"),
])  # fmt: skip
def test_a_base_with_numbers_that_are_none_is_named(part: str, key: str, bad: float, configs: Path, tmp_path: Path):
    whole = load_file(configs / "sd15.safetensors")
    whole[key] = whole[key].clone()
    whole[key].view(-1)[3] = bad
    checkpoint = open_checkpoint(str(tiny.save(tmp_path / "mine.safetensors", whole)))
    with pytest.raises(SpinliteError, match=rf"mine.safetensors is broken: 1 weights of its {part} hold NaN or infinite"):
        checkpoint.load(part, torch.float32)


def test_a_folder_with_nan_is_named(tiny_bases: Path, tmp_path: Path):
    import shutil

    base = Path(shutil.copytree(tiny_bases / "sd15", tmp_path / "mine"))
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"] = torch.full_like(weights["conv_in.bias"], float("nan"))
    tiny.save(path, weights)
    with pytest.raises(SpinliteError, match=r"mine is broken: 1 weights of its unet .* e\.g\. conv_in\.bias"):
        load_family(Model(base=str(base)), device.Device(torch.device("cpu"), "a test"))


@pytest.mark.parametrize(("text", "said"), [
    ('model:\n  params:\n    parameterization: "v"\n', "v"), ("  parameterization: v # v-prediction", "v"),
    ("    parameterization: eps", "eps"), ("model:\n  target: x\n", "eps"), ("# parameterization: v\n", "eps"),
])  # fmt: skip
def test_a_yaml_beside_the_file_says_what_it_predicts(text: str, said: str, configs: Path, tmp_path: Path):
    base = tiny.save(tmp_path / "mine.safetensors", load_file(configs / "sd15.safetensors"))
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert resolve_prediction(open_checkpoint(str(base)), "auto", None) == (said, False)
    assert load(base).path.prediction == said


def test_a_yaml_that_contradicts_the_file_is_named(configs: Path, tmp_path: Path):
    whole = load_file(configs / "sd15.safetensors") | {"v_pred": torch.zeros(0)}
    base = tiny.save(tmp_path / "mine.safetensors", whole)
    (tmp_path / "mine.yaml").write_text("parameterization: eps", encoding="utf-8")
    with pytest.raises(SpinliteError, match=r"contradicts itself: v by its key v_pred, eps by mine\.yaml"):
        resolve_prediction(open_checkpoint(str(base)), "auto", None)


def channels(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return tensors | {f"{NET}input_blocks.0.0.weight": torch.zeros(16, count, 3, 3)}


def unet_alone(tensors: dict[str, Tensor], prefix: str = NET) -> dict[str, Tensor]:
    return {prefix + key.removeprefix(NET): value for key, value in tensors.items() if key.startswith(NET)}


@pytest.mark.parametrize(
    "name", ["text_encoder.text_model.encoder.layers.99.mlp.fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"]
)
def test_a_lora_for_what_the_text_encoders_lack_is_refused_when_it_is_read(name: str, tiny_bases: Path, tmp_path: Path):
    made = load(tiny_bases / "sd15")
    keys = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32), name: (48, 24)}
    lora = {f"{key}.lora.down.weight": torch.zeros(2, shape[1]) for key, shape in keys.items()}
    lora |= {f"{key}.lora.up.weight": torch.zeros(shape[0], 2) for key, shape in keys.items()}
    with pytest.raises(SpinliteError, match=r"the LoRA changes (text_encoder\.|a second text encoder)"):
        made.start_from(tiny.save(tmp_path / "lora.safetensors", lora))


CONTEXT = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
FILES: dict[str, tuple[Any, str]] = {
    "inpainting": (lambda xl: channels(xl, 9), "is made for inpainting"),
    "pix2pix": (lambda xl: channels(xl, 8), r"is made for editing pictures \(InstructPix2Pix\)"),
    "depth": (lambda xl: channels(xl, 5), "is made for depth maps"),
    "seven": (lambda xl: channels(xl, 6), "is made for 6 channels of input"),
    "network alone": (
        lambda xl: unet_alone(xl) | {NET + CONTEXT: torch.zeros(8, 2048)},
        "alone, of SDXL: its text encoders and",
    ),
    "network of SD 1": (lambda xl: unet_alone(xl, "") | {CONTEXT: torch.zeros(8, 768)}, "alone, of SD 1.x: its text encoders"),
    "refiner": (
        lambda xl: (
            {k: v for k, v in xl.items() if "embedders.0" not in k and "embedders.1" not in k}
            | {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1), NET + CONTEXT: torch.zeros(8, 1280)}
        ),
        "is the SDXL refiner",
    ),
    "video": (lambda xl: unet_alone(xl) | {f"{NET}input_blocks.1.0.time_stack.x": torch.zeros(1)}, "is a video model"),
    "Flux": (lambda _: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, "is FLUX or a relative of it"),
    "SD 3": (lambda _: {f"{NET}joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(1)}, "is SD 3"),
    "Wan": (lambda _: {f"{NET}blocks.0.cross_attn.q.weight": torch.zeros(1)}, r"is a video model \(Wan"),
    "Qwen": (lambda _: {"transformer_blocks.0.img_mod.1.weight": torch.zeros(1)}, "is Qwen-Image"),
    "VAE": (lambda _: {"decoder.conv_in.weight": torch.zeros(1)}, "is a VAE alone"),
    "text encoder": (lambda _: {"text_model.embeddings.x": torch.zeros(1)}, "is a text encoder alone"),
    "ControlNet": (lambda _: {"control_model.input_hint_block.0.weight": torch.zeros(1)}, "is a ControlNet"),
    "embedding": (lambda _: {"clip_l": torch.zeros(1), "clip_g": torch.zeros(1)}, r"is an embedding \(textual"),
    "LoRA": (lambda _: {"lora_unet_x.lora_up.weight": torch.zeros(1)}, "is a LoRA, not a base model"),
    "nothing": (lambda _: {"a": torch.zeros(1)}, "has no network like Stable Diffusion's"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_base_model_is_called_by_its_name(what: str, configs: Path, tmp_path: Path):
    make, said = FILES[what]
    path = tiny.save(tmp_path / "given.safetensors", make(load_file(configs / "sdxl.safetensors")))
    with pytest.raises(SpinliteError, match=f"given.safetensors .*{said}"):
        load_family(Model(base=str(path)), CPU)
