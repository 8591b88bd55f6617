"""Trying a LoRA out: pictures that say how they were made, and a sheet of them."""

from pathlib import Path

import pytest
import tiny
import torch
from conftest import TOY
from PIL import Image
from test_selfplay import Quiet

from spinlite import config, device
from spinlite.config import Model, Play, Settings
from spinlite.errors import SpinliteError
from spinlite.families import family
from spinlite.lora import Pair
from spinlite.lora.apply import applied
from spinlite.lora.layouts import diffusers
from spinlite.play import sample
from spinlite.selfplay import train
from spinlite.tryout import Asked, draw, numbers, of_file, of_run, prompts

CPU = device.Device(torch.device("cpu"), "a test")


def test_a_picture_says_how_a_webui_repeats_it(tmp_path: Path):
    """The text in the file, read back as A1111 does; and the picture is that of the seed's own noise."""
    base = family(Model(), CPU)
    name = "mid_block.attentions.0.proj_in"
    weight = base.net.get_submodule(name).weight
    pair = Pair(torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2, *[1] * (weight.ndim - 2)))  # pyright: ignore
    lora = {f"unet.{name}": pair}
    asked = Asked(["red apple", "a [dog], ünï"], "blurry", 2, 7, [0.5, 1.0], Play(steps=2, guidance=2.5))
    path = draw(base, {"base": {}, "mine-2": lora}, asked, tmp_path / "tries", lambda done, of: None)
    files = sorted(p.name for p in path.parent.glob("*.png") if p != path)
    assert len(files) == 3 * 2 * 2 and path.name == "sheet.png"
    with Image.open(path.parent / "mine-2-0.5-prompt2-seed8.png") as picture:
        text = picture.info["parameters"]
        shown = picture.convert("RGB").tobytes()
    prompt, negative, last = text.split("\n")
    said = dict(part.split(": ", 1) for part in last.split(", "))
    assert prompt == "a [dog], ünï <lora:mine-2:0.5>" and negative == "Negative prompt: blurry"
    assert said == {"Steps": "2", "Sampler": "DPM++ 2M", "CFG scale": "2.5", "Seed": "8", "Size": "64x64", "RNG": "CPU"}
    noise = torch.randn((1, *base.latent_shape), generator=torch.Generator("cpu").manual_seed(8))
    with applied(base.net, lora, 0.5):
        latents = sample(base, noise, base.prompt(["a [dog], ünï"]), base.prompt(["blurry"]), asked.play)
    assert base.decode(latents)[0].tobytes() == shown
    with Image.open(path.parent / "base-1-prompt1-seed7.png") as picture:
        assert picture.info["parameters"].startswith("red apple\n")


def test_a_run_is_drawn_round_by_round(toy: Settings, tmp_path: Path):
    run = train(config.load(TOY, data__folder=toy.data.folder, judge__stop=False), tmp_path / "r", Quiet()).run
    base, play, loras = of_run(run.folder, "all")
    assert list(loras) == ["base", "r-1", "r-2"] and not loras["base"] and play == run.settings.play
    assert [list(of_run(run.folder, word)[2]) for word in ("last", "1")] == [["r-2"], ["r-1"]]
    with pytest.raises(SpinliteError, match="would be 900 pictures"):
        draw(base, loras, Asked(["x"], "", 300, 0, [1.0], play), tmp_path / "t", lambda done, of: None)


def test_prompts_and_strengths_are_read(tmp_path: Path, tiny_bases: Path):
    file = tmp_path / "p.txt"
    file.write_text("\ufeffa cat\n\n  a dog \n", encoding="utf-8")
    assert prompts(["x", f"@{file}"]) == ["x", "a cat", "a dog"] and numbers("0.6, 1") == [0.6, 1.0]
    with pytest.raises(SpinliteError, match="no prompt"):
        prompts([" "])
    with pytest.raises(SpinliteError, match="no list of numbers"):
        numbers("much")
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    both = {key: Pair(torch.randn(2, 24), torch.randn(24, 2)), "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q":
            Pair(torch.randn(2, 32), torch.randn(32, 2))}  # fmt: skip
    path = tiny.save(tmp_path / "mine.safetensors", diffusers(both, torch.float32))
    assert of_file(path, str(tiny_bases / "sd15"), [1.0])[2].keys() == {"mine"}
    with pytest.raises(SpinliteError, match="changes text encoders"):
        of_file(path, str(tiny_bases / "sd15"), [0.5])
