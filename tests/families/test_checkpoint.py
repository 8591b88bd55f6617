"""What a base model is read as: folders and single files, what they say of themselves, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextConfig

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import class_of
from spinlite.families.clip import build_tokenizer
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.open import open_checkpoint
from spinlite.families.record import CONFIGS
from spinlite.families.schedule import OTHERS, SAMPLERS, make_sampler, noise_scheduler, resolve_prediction
from spinlite.families.unet_kinds import XL_PARTS
from spinlite.memory import device
from spinlite.training.animation import strip
from tests.families import tiny

CPU = device.Device(torch.device("cpu"), "a test")
KINDS = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
PARTS = {"sd15": ["unet", "vae", "text_encoder"], "sd21": ["unet", "vae", "text_encoder"]}
PARTS["sdxl"] = [*PARTS["sd15"], "text_encoder_2"]
PARAMETERS = {  # of the published models
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


def load(base: Path, **settings) -> Family:
    return load_family(Model(base=str(base), **settings), CPU)


def relabelled(folder: Path, to: Path, **changes) -> Path:
    """A copy of a diffusers folder with other words in its scheduler's settings."""
    shutil.copytree(folder, to)
    settings = to / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes), encoding="utf-8")
    return to


def marked(bases: Path, to: Path, kind: str = "sdxl", keys: tuple[str, ...] = (), **metadata: str) -> Path:
    """A single file with marker keys and metadata; `_` of a name stands for `.`, `__` for `_`."""
    tensors = load_file(bases / f"{kind}.safetensors") | {key: torch.zeros(0) for key in keys}
    names = {name.replace("__", "~").replace("_", ".").replace("~", "_"): value for name, value in metadata.items()}
    return tiny.save(to, tensors, names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shapes_in_the_package_are_those_of_the_published_models(kind: str):
    folder = CONFIGS / kind
    for part, expected in PARAMETERS[kind].items():
        made: Any = class_of(XL_PARTS, part)
        with torch.device("meta"):
            if part in ("unet", "vae"):
                model = made.from_config(made.load_config(folder, subfolder=part))
            else:
                model = made(CLIPTextConfig.from_pretrained(folder / part))
        assert sum(p.numel() for p in model.parameters()) == expected, part


def test_the_tokenizer_in_the_package_is_clips():
    made = build_tokenizer()
    text = "a photo of an astronaut riding a horse"
    assert len(made) == 49408 and made(text).input_ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
    assert made.pad_token_id == 49407 and made.model_max_length == 77


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_holds_what_the_folder_holds(kind: str, configs: Path):
    folder, file = open_checkpoint(str(configs / kind)), open_checkpoint(str(configs / f"{kind}.safetensors"))
    assert folder.kind == file.kind == KINDS[kind]
    for part in PARTS[kind]:
        here, there = (x.load(part, torch.float32).state_dict() for x in (folder, file))
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here), part
    for name in ["tokenizer", "tokenizer_2"][: 1 + (kind == "sdxl")]:
        ids = [x.load(name, torch.float32)("a red cat", padding="max_length", max_length=77).input_ids for x in (folder, file)]
        assert ids[0] == ids[1]


def test_the_second_tokenizer_pads_with_zero_and_still_reads_an_exclamation_mark(configs: Path):
    made = open_checkpoint(str(configs / "sdxl.safetensors")).load("tokenizer_2", torch.float32)
    assert made("wow!", padding="max_length", max_length=6).input_ids == [49406, 2781, 256, 49407, 0, 0]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_family_of_a_single_file_computes_what_that_of_the_folder_does(kind: str, configs: Path):
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    outputs: list[Tensor] = []
    for base in (configs / kind, configs / f"{kind}.safetensors"):
        made = load(base)
        with torch.no_grad():
            outputs.append(made.denoise(x, t, made.encode_captions(["a cat", ""])))
    assert_close(outputs[0], outputs[1])


def test_auto_tells_the_families_apart(configs: Path):
    for kind in KINDS:
        for name in (kind, f"{kind}.safetensors"):
            prediction = "eps" if name == "sd21.safetensors" else "auto"
            made = load(configs / name, prediction=prediction)
            assert type(made).__name__ == ("StableDiffusionXL" if kind == "sdxl" else "StableDiffusion")
    with pytest.raises(SpinliteError, match=r"is SDXL.*\nfix: .*auto"):
        load(configs / "sdxl", family="sd")
    assert type(load_family(Model(base="0", family="toy"), CPU)).__name__ == "Toy"


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_pickles_are_refused(ending: str, tmp_path: Path, tiny_bases: Path):
    path = tmp_path / f"model{ending}"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(SpinliteError, match=r"is a pickle.*\nfix: .*safetensors"):
        load(path)
    with pytest.raises(SpinliteError, match="is a pickle"):
        load(tiny_bases / "sd15", vae=str(path)).decode(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [(("v_pred",), {}), ((), {"modelspec_prediction__type": "v"}), ((), {"ss__v__parameterization": "True"})],
)
def test_v_prediction_is_read_from_a_single_file(keys, metadata, configs: Path, tmp_path: Path):
    checkpoint = open_checkpoint(str(marked(configs, tmp_path / "x.safetensors", keys=keys, **metadata)))
    assert resolve_prediction(checkpoint, "auto", None) == ("v", False)


def test_zero_terminal_snr_is_read_from_a_single_file(configs: Path, tmp_path: Path):
    made = load(marked(configs, tmp_path / "x.safetensors", keys=("v_pred", "ztsnr")))
    assert made.path.prediction == "v" and made.path.alpha_bar is not None
    assert made.path.alpha_bar[-1] == 0 and made.path.alpha_bar[0] > 0.99
    assert made.export_metadata()["modelspec.prediction_type"] == "v"


def test_a_preset_says_what_a_file_does_not(configs: Path):
    assert resolve_prediction(open_checkpoint(str(configs / "sdxl.safetensors")), "auto", None) == ("eps", False)
    made = load(configs / "sdxl.safetensors", prediction="v", zero_snr=True)
    assert made.path.prediction == "v" and made.path.alpha_bar is not None and made.path.alpha_bar[-1] == 0
    assert made.base_hash != load(configs / "sdxl.safetensors").base_hash  # other samples come of it


def test_a_folder_says_what_it_predicts(tiny_bases: Path, tmp_path: Path):
    labels = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    base = relabelled(tiny_bases / "sdxl", tmp_path / "v", **labels)
    assert resolve_prediction(open_checkpoint(str(base)), "auto", None) == ("v", True)
    with pytest.raises(SpinliteError, match="'sample'"):
        open_checkpoint(str(relabelled(tiny_bases / "sdxl", tmp_path / "s", prediction_type="sample")))


def test_contradictions_stop_the_run(configs: Path, tmp_path: Path):
    v = open_checkpoint(str(marked(configs, tmp_path / "v.safetensors", keys=("v_pred", "ztsnr"))))
    with pytest.raises(SpinliteError, match=r"preset says model.prediction = 'eps'.*v by its key v_pred"):
        resolve_prediction(v, "eps", None)
    with pytest.raises(SpinliteError, match=r"zero terminal SNR.*model.zero_snr = false"):
        resolve_prediction(v, "auto", False)
    with pytest.raises(SpinliteError, match=r"eps by scheduler_config\.json"):
        resolve_prediction(open_checkpoint(str(configs / "sdxl")), "v", None)
    both = marked(configs, tmp_path / "both.safetensors", keys=("v_pred",), modelspec_prediction__type="epsilon")
    with pytest.raises(SpinliteError, match="contradicts itself: v by its key v_pred, eps by modelspec"):
        resolve_prediction(open_checkpoint(str(both)), "auto", None)
    assert resolve_prediction(open_checkpoint(str(both)), "v", None) == ("v", False)  # the preset may decide between them
    with pytest.raises(SpinliteError, match="calls itself stable-diffusion-v1"):
        open_checkpoint(str(marked(configs, tmp_path / "a.safetensors", modelspec_architecture="stable-diffusion-v1")))


def test_eps_with_zero_terminal_snr_is_refused(configs: Path, tmp_path: Path):
    with pytest.raises(SpinliteError, match="its noise says nothing about the picture"):
        load(configs / "sdxl", zero_snr=True)
    with pytest.raises(SpinliteError, match="zero terminal SNR"):
        load(marked(configs, tmp_path / "x.safetensors", keys=("ztsnr",)))


def test_a_file_that_may_be_either_must_be_told(configs: Path, tmp_path: Path):
    with pytest.raises(SpinliteError, match="does not say whether it predicts eps or v"):
        resolve_prediction(open_checkpoint(str(configs / "sd21.safetensors")), "auto", None)
    named = shutil.copy(configs / "sdxl.safetensors", tmp_path / "MyMerge_vPred10.safetensors")
    with pytest.raises(SpinliteError, match="its name speaks of v"):
        resolve_prediction(open_checkpoint(str(named)), "auto", None)
    for size, said in (("512", "eps"), ("768-v", "v")):
        path = marked(configs, tmp_path / f"{said}.safetensors", "sd21", modelspec_architecture=f"stable-diffusion-v2-{size}")
        assert resolve_prediction(open_checkpoint(str(path)), "auto", None) == (said, False)


def test_the_rescaled_schedule_keeps_its_start_and_ends_in_noise(tiny_bases: Path):
    checkpoint = open_checkpoint(str(tiny_bases / "sdxl"))
    plain, zero = (noise_scheduler(checkpoint, "v", flag) for flag in (False, True))
    before, after = plain.alphas_cumprod.sqrt(), zero.alphas_cumprod.sqrt()
    assert_close(after[0], before[0])
    assert_close(after, before[0] * (before - before[-1]) / (before[0] - before[-1]), atol=1e-4, rtol=1e-3)
    assert after[-1] == 0 and zero.config["timestep_spacing"] == "trailing"


def refused(path: Path, tensors: dict[str, Tensor], match: str) -> None:
    with pytest.raises(SpinliteError, match=match):
        load(tiny.save(path, tensors))


def test_files_of_another_kind_are_named(configs: Path, tmp_path: Path):
    whole, path, net = load_file(configs / "sdxl.safetensors"), tmp_path / "x.safetensors", "model.diffusion_model."
    first = f"{net}input_blocks.0.0.weight"
    refused(path, {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "is a LoRA")
    refused(path, {"down_blocks.0.x": torch.zeros(1)}, "in diffusers' layout")
    refused(path, {f"{net}double_blocks.0.x": torch.zeros(1)}, "is FLUX or a relative of it")
    refused(path, whole | {first: torch.zeros(16, 9, 3, 3)}, "inpainting")
    refused(path, whole | {"edm_mean": torch.zeros(4)}, "EDM")
    refused(path, {k: v for k, v in whole.items() if not k.startswith("conditioner")}, "its text encoders and VAE are missing")
    with pytest.raises(SpinliteError, match="there is no file"):
        load(tmp_path / "none.safetensors")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(SpinliteError, match="not a whole safetensors file"):
        load(path)


def test_a_file_without_all_its_weights_is_named(configs: Path, tmp_path: Path):
    whole, path = load_file(configs / "sd15.safetensors"), tmp_path / "x.safetensors"
    lost = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    refused(path, {k: v for k, v in whole.items() if k != lost}, "is incomplete: 1 weights of its unet are missing")
    refused(path, whole | {lost: torch.zeros(3, 3, 3, 3)}, "can't read the base model")
    without = load(tiny.save(path, {k: v for k, v in whole.items() if not k.startswith("first_stage_model")}))
    with pytest.raises(SpinliteError, match=r"has no vae\nfix: set model.vae"):
        without.decode(torch.zeros(1, 4, 8, 8))
    silent = load(tiny.save(path, {k: v for k, v in whole.items() if "layers.1.mlp.fc1.bias" not in k}))
    with pytest.raises(SpinliteError, match="is incomplete: 1 weights of its text_encoder"):
        silent.encode_captions([""])


def test_another_vae_is_used_from_a_folder_and_from_a_file(configs: Path, tmp_path: Path):
    """Raw, with its prefix, and as a folder: all the same, and not the base's."""
    vae: Any = AutoencoderKL.from_pretrained(configs / "sd15", subfolder="vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.5)
    vae.save_pretrained(tmp_path / "folder")
    weights = load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    raw = {name: v[:, :, None, None] if ".attn_1." in name and v.ndim == 2 else v
           for name, v in ((tiny.vae_name(k), v) for k, v in weights.items())}  # fmt: skip
    places = [tmp_path / "folder", tiny.save(tmp_path / "raw.safetensors", raw)]
    places.append(tiny.save(tmp_path / "p.safetensors", {f"first_stage_model.{k}": v for k, v in raw.items()}))
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 8, 8)
    base = load(configs / "sd15")
    made = [load(configs / "sd15", vae=str(place)) for place in places]
    pictures = [strip(one.decode(latents)[0]).tobytes() for one in made]
    assert len(set(pictures)) == 1 and pictures[0] != strip(base.decode(latents)[0]).tobytes()
    assert len({one.base_hash for one in [base, *made]}) == 4


@pytest.mark.parametrize("name", [*SAMPLERS, *OTHERS])
def test_a_sampler_has_the_noise_of_a_base_with_zero_snr_or_is_refused(name: str, tiny_bases: Path):
    noise = noise_scheduler(open_checkpoint(str(tiny_bases / "sdxl")), "v", True)
    if name in ("heun", *OTHERS):
        with pytest.raises(SpinliteError, match="ends in zero SNR") as caught:
            make_sampler(noise, name)
        assert caught.value.fix == 'set play.sampler = "dpm++"'
    else:
        assert_close(make_sampler(noise, name).alphas_cumprod, noise.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["dpm++", "ddim", "ddpm", "euler", "unipc"])
def test_of_a_bases_own_sampler_the_noise_alone_counts(name: str, tiny_bases: Path, tmp_path: Path):
    other = shutil.copytree(tiny_bases / "sd15", tmp_path / "other")
    file = other / "scheduler" / "scheduler_config.json"
    stray = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "clip_sample": True, "thresholding": True}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | stray), encoding="utf-8")
    made = [
        make_sampler(noise_scheduler(open_checkpoint(str(base)), "eps", False), name) for base in (tiny_bases / "sd15", other)
    ]
    for sampler in made:
        sampler.set_timesteps(8)
    assert made[0].config == made[1].config and torch.equal(made[0].timesteps, made[1].timesteps)
    assert not made[1].config.get("clip_sample")
