"""Trying a LoRA out: pictures that say how they were made, and a sheet of them."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spinlite.config.load import load_settings
from spinlite.config.prompts import Prompt, read_prompts
from spinlite.config.settings import Model, Play, Settings
from spinlite.errors import SpinliteError
from spinlite.export.export import ExportOptions, export
from spinlite.export.sample import (
    SampleRequest,
    SampleSetup,
    draw_samples,
    parse_numbers,
    setup_of_file,
    setup_of_run,
)
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.schedule import OTHERS, SAMPLERS
from spinlite.lora.apply import applied
from spinlite.lora.layouts import to_diffusers
from spinlite.lora.tensors import Pair
from spinlite.memory import device
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from spinlite.training.animation import strip
from spinlite.training.parameters import _escape, parameters, schedule_type
from spinlite.training.play import sample
from spinlite.training.prompts import settle
from tests.families import tiny
from tests.toy import TOY, Quiet

CPU = device.Device(torch.device("cpu"), "a test")


def drawn(base: Family, loras: dict[str, dict[str, Pair]], model: dict[str, str] | None = None) -> SampleSetup:
    return SampleSetup(base, Play(), loras, {stem: "0123456789abcdef" for stem in loras}, model or {"Model": "demo"})


def of_middle(base: Family) -> dict[str, Pair]:
    torch.manual_seed(0)
    name = "mid_block.attentions.0.proj_in"
    weight: Any = base.net.get_submodule(name).weight
    return {f"unet.{name}": Pair(torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2, *[1] * (weight.ndim - 2)))}


def told(path: Path) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative, the rest) of a picture's text, by A1111's rules: `name: value`, quoted where it has commas."""
    with Image.open(path) as picture:
        *lines, last = picture.info["parameters"].split("\n")
    found = re.findall(r'([\w][\w \-/]+): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)', last)
    said = {name: json.loads(value) if value.startswith('"') else value for name, value in found}
    return lines[0], lines[1].removeprefix("Negative prompt: ") if lines[1:] else "", said


@pytest.mark.parametrize("sampler", ["dpm++", "euler-a"])
def test_a_picture_says_how_a_webui_repeats_it(sampler: str, tmp_path: Path):
    """The text in the file, read back as A1111 does; and the picture is that of the seed's own noise, a sampler's too."""
    base = load_family(Model(), CPU)
    lora = of_middle(base)
    play = Play(steps=2, guidance=2.5, sampler=sampler)
    prompts = [Prompt(text="red apple"), Prompt(text="a [dog] (big),  \\(ünï\\)")]
    asked = SampleRequest(prompts, "blurry (x)", 2, 7, [0.5, 1.0], play)
    made = drawn(base, {"base": {}, "mine-2": lora}, {"Model hash": "abc", "Model": "my: model, 2"})
    path = draw_samples(made, asked, tmp_path / "tries", lambda done, of: None)
    files = sorted(p.name for p in path.parent.glob("*.png") if p != path)
    assert len(files) == 3 * 2 * 2 and path.name == "sheet.png"
    picture = path.parent / "mine-2-0.5-prompt2-seed8.png"
    prompt, negative, said = told(picture)
    assert prompt == r"a \[dog\] \(big\), \\\(ünï\\\) <lora:mine-2:0.5>" and negative == r"blurry \(x\)"
    names = {"dpm++": ("DPM++ 2M", "SGM Uniform"), "euler-a": ("Euler a", "SGM Uniform")}[sampler]
    assert said == {
        "Steps": "2", "Sampler": names[0], "Schedule type": names[1], "CFG scale": "2.5", "Seed": "8", "Size": "64x64",
        "Model hash": "abc", "Model": "my: model, 2", "Lora hashes": "mine-2: 0123456789ab", "RNG": "CPU",
    }  # fmt: skip
    chance = torch.Generator("cpu").manual_seed(8)
    noise = torch.randn((1, *base.latent_shape), generator=chance)
    with applied(base.net, lora, 0.5):
        latents = sample(
            base, noise, base.encode_captions([prompts[1].text]), base.encode_captions([asked.negative]), play, [chance]
        )
    with Image.open(picture) as shown:
        assert strip(base.decode(latents)[0]).tobytes() == shown.convert("RGB").tobytes()
    assert told(path.parent / "base-1-prompt1-seed7.png")[0] == "red apple"
    assert "Lora hashes" not in told(path.parent / "base-1-prompt1-seed7.png")[2]


PLAIN = {  # a prompt -> how it is written for A1111 to read it as plain text
    r"C:\cats": r"C:\\cats", r"\(big\)": r"\\\(big\\\)", "one BREAK two AND three": "one break two and three",
    "BREAKFAST for BRANDY": "BREAKFAST for BRANDY", "<lora:x:1> a < b": "< lora:x:1> a < b", "#1 fan": r"\#1 fan",
    "fan #1": "fan #1", "a\n  b": "a b", "(red:1.3) [x|y]": r"\(red:1.3\) \[x|y\]",
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "written"), PLAIN.items())
def test_a_webui_reads_a_prompt_as_plain_text(prompt: str, written: str):
    assert _escape(prompt) == written


@pytest.mark.parametrize("sampler", [*SAMPLERS, *OTHERS])
def test_every_sampler_has_a_name_and_the_nearest_schedule(sampler: str):
    """A1111's where it has the sampler; else its own. Times that A1111 makes by the same rule are named by it."""
    base = load_family(Model(), CPU)
    play = Play(steps=20, sampler=sampler)
    prompt = settle(Prompt(text="x"), base, play)
    said = parameters(base, play, prompt, {}).split("\n")[-1]
    names = {
        "dpm++": "DPM++ 2M", "ddim": "DDIM", "euler": "Euler", "euler-a": "Euler a", "heun": "Heun", "unipc": "UniPC",
        "ddpm": "DDPM", "lcm": "LCM", "tcd": "TCD", "PNDMScheduler": "PLMS",
        "DPMSolverSinglestepScheduler": "DPMSolverSinglestep",
    }  # fmt: skip
    assert f"Sampler: {names[sampler]}, " in said
    assert ("Schedule type" in said) == (sampler not in ("ddim", "unipc", "PNDMScheduler"))
    if sampler in ("euler", "euler-a", "heun", "ddpm"):
        assert "Schedule type: SGM Uniform, " in said
    if sampler in ("dpm++", "euler", "heun"):
        assert "Schedule type: Karras, " in parameters(base, Play(sampler=sampler, spacing="karras"), prompt, {})


def test_a_schedule_is_known_by_its_times():
    assert schedule_type(torch.tensor([999.0, 749.2, 499.5, 249.7])) == "SGM Uniform"
    assert schedule_type(torch.tensor([999, 666, 333, 0])) == "Uniform"
    assert schedule_type(torch.tensor([751, 501, 251, 251, 1])) == "DDIM"


def test_a_run_is_drawn_round_by_round_with_the_hashes_of_its_exports(toy: Settings, tmp_path: Path):
    run = train(load_settings(TOY, data__folder=toy.data.folder, judge__stop=False), tmp_path / "r", Quiet()).run
    made = setup_of_run(run.folder, "all")
    assert list(made.loras) == ["base", "r-1", "r-2"] and not made.loras["base"] and made.play == run.settings.play
    assert [list(setup_of_run(run.folder, word).loras) for word in ("last", "1")] == [["r-2"], ["r-1"]]
    for k in (1, 2):
        export(run, load_family(run.settings.model, CPU), k, tmp_path / "x.safetensors", ExportOptions())
        assert read_tensors(tmp_path / "x.safetensors")[1]["sshs_model_hash"] == made.hashes[f"r-{k}"]
    many = SampleRequest([Prompt(text="x")], "", 300, 0, [1.0], made.play)
    with pytest.raises(SpinliteError, match="would be 900 pictures"):
        draw_samples(made, many, tmp_path / "t", lambda done, of: None)


def test_a_file_is_known_by_its_data_and_a_single_file_base_by_its_content(configs: Path, tmp_path: Path):
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {key: Pair(torch.randn(2, 32), torch.randn(32, 2))}
    path = tiny.save(tmp_path / "mine.safetensors", to_diffusers(lora, torch.float32))
    base = configs / "sd15.safetensors"
    made = setup_of_file(path, str(base), [0.5])
    content = path.read_bytes()
    assert made.hashes == {"mine": hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()}
    assert made.model == {"Model hash": hashlib.sha256(base.read_bytes()).hexdigest()[:10], "Model": "sd15"}


def test_prompts_and_strengths_are_read(tmp_path: Path, tiny_bases: Path):
    file = tmp_path / "p.txt"
    file.write_text("\ufeffa cat\n\n  a dog \n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(["x", f"@{file}"])] == ["x", "a cat", "a dog"]
    assert parse_numbers("0.6, 1") == [0.6, 1.0]
    with pytest.raises(SpinliteError, match="no prompt"):
        read_prompts([" "])
    file.write_bytes("ünï".encode("utf-16"))
    assert [prompt.text for prompt in read_prompts([f"@{file}"])] == ["ünï"]
    file.write_bytes("a cat".encode("utf-16-le"))
    with pytest.raises(SpinliteError, match="is not UTF-8"):
        read_prompts([f"@{file}"])
    for missing in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(SpinliteError, match="can't read the prompts of"):
            read_prompts([f"@{missing}"])
    for text in ("nan", "1,inf", "-inf", "1e9"):
        with pytest.raises(SpinliteError, match=r"--strength .* is not|a strength of .* makes no sense"):
            parse_numbers(text)
    with pytest.raises(SpinliteError, match="not a list of numbers"):
        parse_numbers("much")
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    both = {key: Pair(torch.randn(2, 24), torch.randn(24, 2)), "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q":
            Pair(torch.randn(2, 32), torch.randn(32, 2))}  # fmt: skip
    path = tiny.save(tmp_path / "mine.safetensors", to_diffusers(both, torch.float32))
    assert setup_of_file(path, str(tiny_bases / "sd15"), [1.0]).loras.keys() == {"mine"}
    with pytest.raises(SpinliteError, match="changes text encoders"):
        setup_of_file(path, str(tiny_bases / "sd15"), [0.5])
