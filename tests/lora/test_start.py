"""LoRA files of others: every layout means the same, what does not fit is named, and a run starts from one."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from spinlite.config.load import load_settings
from spinlite.config.settings import Model, Settings
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.names import kohya_name, module_shapes, original_name
from spinlite.lora.adapters import Slots
from spinlite.lora.apply import applied
from spinlite.lora.layouts import to_diffusers, to_kohya
from spinlite.lora.start import describe_start, make_slots
from spinlite.lora.tensors import NOTHING, Pair, lora_of_snapshot
from spinlite.memory import device
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from tests.families import tiny
from tests.toy import TOY, Quiet

CPU = device.Device(torch.device("cpu"), "a test")
KIND: Any = {"sd15": "sd1", "sdxl": "sdxl"}
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
Layouts = dict[str, tuple[dict[str, Tensor], dict[str, str]]]


def load_base(base: Path) -> Family:
    return load_family(Model(base=str(base)), CPU)


def lora_of(net: torch.nn.Module, width: int) -> dict[str, Pair]:
    """Attention, feed-forward, convolutions, of two ranks; and a text encoder's query."""
    torch.manual_seed(0)
    found = {}
    for i, (name, shape) in enumerate(module_shapes(net).items()):
        if name.endswith(("to_q", "to_out.0", "ff.net.0.proj", "conv1", "proj_in", "upsamplers.0.conv")):
            rank = 2 + i % 2
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2))
            found[f"unet.{name}"] = Pair(torch.randn(rank, *shape[1:]) * 0.1, up * 0.1)
    return found | {TEXT: Pair(torch.randn(2, width), torch.randn(width, 2) * 0.1)}


def layouts(lora: dict[str, Pair], kind: Any) -> Layouts:
    """One LoRA as everybody writes it."""
    alpha = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "text_encoder.lora_alpha": 2})}
    plain = to_diffusers(lora, torch.float32)
    double = {k: v * (v.shape[1] / 4 if k.startswith("unet") and "lora_B" in k else 1) for k, v in plain.items()}
    other = "unet" if kind == "sdxl" else "original"

    def blocks(name: str) -> str:
        part, _, module = name.partition(".")
        key = original_name(module, kind == "sdxl") if other == "original" and part == "unet" else module
        return f"lora_unet_{key.replace('.', '_')}" if part == "unet" else kohya_name(name, kind)

    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in plain.items()}
    oldest = {_processor(k): v for k, v in old.items()}
    raw = {f"{k.partition('.')[0]}.base_model.model.{k.partition('.')[2]}": v for k, v in plain.items()}

    def comfy(name: str) -> str:
        part, _, module = name.partition(".")
        if part == "unet":
            return f"diffusion_model.{original_name(module, kind == 'sdxl')}"
        return f"text_encoders.clip_l.transformer.{module}"

    linear, scaled = (
        {k.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up"): v for k, v in given.items()}
        for given in (plain, double)
    )
    of_2023 = {re.sub(r"(self_attn\.)q_proj\.lora\.", r"\1to_q_lora.", k): v for k, v in old.items()}
    flat = {k.replace(".text_model.", "."): v for k, v in plain.items()}
    return {
        "kohya": (to_kohya(lora, lambda name: kohya_name(name, kind), torch.float32)[0], {}),
        "other blocks": (to_kohya(lora, blocks, torch.float32)[0], {}),
        "diffusers": (plain, {}), "alpha in the header": (double, alpha), "older": (old, {}), "oldest": (oldest, {}),
        "comfyui": (to_kohya(lora, comfy, torch.float32)[0], {}),
        "comfyui, unet alone, without a beginning": (
            {k.removeprefix("diffusion_model."): v for k, v in to_kohya(lora, comfy, torch.float32)[0].items()}, {}
        ),
        "linear layer": (linear, {}), "linear layer, alpha in the header": (scaled, alpha),
        "text encoder of 2023": (of_2023, {}),
        "raw peft": (raw, {}), "without text_model": (flat, {}),
    }  # fmt: skip


def _processor(key: str) -> str:
    for leaf in ("to_q", "to_out.0"):
        if f".{leaf}.lora." in key:
            return key.replace(f".{leaf}.lora.", f".processor.{leaf.removesuffix('.0')}_lora.")
    return key


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layout_means_the_same(kind: str, tiny_bases: Path, tmp_path: Path):
    made = load_base(tiny_bases / kind)
    lora = lora_of(made.net, 24)
    for name, (tensors, metadata) in layouts(lora, KIND[kind]).items():
        made.start_from(tiny.save(tmp_path / f"{name}.safetensors", tensors, metadata))
        whole = {module for module, pair in made.start.items() if pair.change.any()}
        assert whole == lora.keys(), name
        for module, pair in lora.items():
            assert_close(made.start[module].change, pair.change, rtol=1e-4, atol=1e-6, msg=f"{name}: {module}")


def test_a_file_of_numbered_modules_is_cloneofsimos(tiny_bases: Path, tmp_path: Path):
    """The order was: down, up, middle; in a block attention to itself, GEGLU, attention to the text."""
    made = load_base(tiny_bases / "sd15")
    known = module_shapes(made.net)
    inner = [name.removesuffix("attn1.to_q") for name in known if name.endswith("attn1.to_q")]
    blocks = [block for side in ("down", "up", "mid") for block in inner if block.startswith(side)]
    leaves = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj"]
    leaves += ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
    order = [block + leaf for block in blocks for leaf in leaves]
    pairs = {m: Pair(torch.randn(2, known[m][1]), torch.randn(known[m][0], 2)) for m in order}
    tensors = {f"unet:{i}:{end}": getattr(pairs[m], end) for i, m in enumerate(order) for end in ("up", "down")}
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]'} | {f"unet:{i}:rank": "2" for i in range(len(order))}
    made.start_from(tiny.save(tmp_path / "x.safetensors", tensors, metadata))
    assert made.start.keys() == {f"unet.{m}" for m in order} and len(order) == 9 * 16
    assert all(torch.equal(made.start[f"unet.{m}"].change, pair.change) for m, pair in pairs.items())
    with pytest.raises(SpinliteError, match="ResnetBlock2D, in an order that is not known"):
        made.start_from(tiny.save(tmp_path / "z.safetensors", tensors, {"unet": '["Attention", "ResnetBlock2D"]'}))


def test_what_is_no_lora_for_the_base_is_named(tiny_bases: Path, tmp_path: Path):
    made, other = load_base(tiny_bases / "sd15"), load_base(tiny_bases / "sdxl")
    path = tmp_path / "mine.safetensors"

    def refused(tensors: dict[str, Tensor], match: str) -> None:
        with pytest.raises(SpinliteError, match=rf"^mine\.safetensors {match}"):
            made.start_from(tiny.save(path, tensors))

    right = to_kohya(lora_of(made.net, 24), lambda name: kohya_name(name, "sd1"), torch.float32)[0]
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    wrong = to_kohya(lora_of(other.net, 24), lambda name: kohya_name(name, "sdxl"), torch.float32)[0]
    refused(wrong, "does not fit an SD 1.x model")
    refused(right | {f"{query}.lora_down.weight": torch.zeros(3, 7)}, "does not fit.*changes .*where the base has")
    refused(right | {f"{query}.lora_down.weight": torch.zeros(5, 32)}, "holds matrices of .* that do not fit each other")
    refused({k: v for k, v in right.items() if k != f"{query}.lora_up.weight"}, f"holds half of the module {query}")
    refused({k: v for k, v in right.items() if "lora_te" in k}, "changes only the text encoder")
    refused(right | {"bundle_emb.x.string_to_param.*": torch.zeros(1)}, "holds 1 keys that .* has no place for.*bundle")
    refused(right | {f"{query}.dora_scale": torch.zeros(1)}, "is a DoRA")
    refused({f"{query}.hada_w1_a": torch.zeros(1)}, "is a LoHa")
    refused(load_file(tiny_bases / "sd15.safetensors"), "is a whole model")
    refused({"x": torch.zeros(1)}, "is not a LoRA")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SpinliteError, match="is not a whole safetensors file"):
        made.start_from(path)
    with pytest.raises(SpinliteError, match="there is no such file"):
        made.start_from(tmp_path / "none.safetensors")
    torch.save(right, tmp_path / "mine.pt")
    with pytest.raises(SpinliteError, match=r"mine\.pt .*pickle"):
        made.start_from(tmp_path / "mine.pt")


def test_the_slots_hold_the_file_exactly_and_captions_its_text_part(tiny_bases: Path, tmp_path: Path):
    plain, made = load_base(tiny_bases / "sd15"), load_base(tiny_bases / "sd15")
    lora = lora_of(plain.net, 24)
    made.start_from(tiny.save(tmp_path / "x.safetensors", to_diffusers(lora, torch.float32)))
    assert made.base_hash != plain.base_hash and not torch.equal(
        made.encode_captions(["a"])["prompt"], plain.encode_captions(["a"])["prompt"]
    )
    assert NOTHING not in describe_start(made.start, "x")
    assert NOTHING in describe_start({name: pair.times(0) for name, pair in made.start.items()}, "x")
    slots = make_slots(made.net, made.lora_targets["linear"], Model(rank=1, alpha=2.0), 0, made.start)
    assert slots.scale == 2 and isinstance(slots, Slots)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), made.encode_captions(["a", "b"])
    with torch.no_grad():
        with applied(plain.net, lora):
            expected = plain.denoise(x, t, cond)
        for who in ("policy", "opponent"):
            with slots.use(who):
                assert_close(made.denoise(x, t, cond), expected, rtol=1e-4, atol=1e-4)
        with slots.use("base"):
            assert_close(made.denoise(x, t, cond), plain.denoise(x, t, cond))
    steep = make_slots(load_base(tiny_bases / "sd15").net, ["to_q"], Model(rank=6, alpha=6.0, rslora=True), 0, made.start)
    assert steep.scale == pytest.approx(6**0.5), "the settings' own, at the file's rank of 24 too"
    with pytest.raises(SpinliteError, match=r"model\.dora"):
        make_slots(load_base(tiny_bases / "sd15").net, ["to_q"], Model(dora=True), 0, made.start)


def test_a_run_goes_on_from_another_runs_lora(toy: Settings, tmp_path: Path):
    """Snapshot 0 is the LoRA, the first opponent is the base with it, the probe holds, and the start may be the best."""
    first = train(load_settings(TOY, data__folder=toy.data.folder, judge__stop=False), tmp_path / "a" / "r", Quiet()).run
    lora = lora_of_snapshot(
        read_tensors(first.snapshot_path(2))[0], json.loads(read_tensors(first.snapshot_path(2))[1]["spinlite"])["scale"]
    )
    file = tiny.save(tmp_path / "mine.safetensors", to_kohya(lora, lambda n: f"lora_{n.replace('.', '_')}", torch.float32)[0])
    watch = Quiet()
    settings = load_settings(TOY, data__folder=toy.data.folder, model__init_lora=str(file), model__rank=2, judge__stop=False)
    again = train(settings, tmp_path / "a" / "s", watch)
    assert any("mine.safetensors: rank 4, 3 modules" in line for line in watch.said)
    kept, about = read_tensors(again.run.snapshot_path(0))
    for name, pair in lora_of_snapshot(kept, json.loads(about["spinlite"])["scale"]).items():
        assert_close(pair.change, lora[name].change, rtol=1e-4, atol=1e-6)
    assert [p["loss"] for p in again.run.events("probe")] == pytest.approx([math.log(2)] * 2)
    ended, begun = first.events("judge")[-1], again.rounds[0]
    assert begun["previous_real"] == pytest.approx(ended["policy_real"], rel=1e-4) and begun["base_real"] == ended["base_real"]
    assert again.best == [begun["previous_real"], *(r["policy_real"] for r in again.rounds)].index(
        min(begun["previous_real"], *(r["policy_real"] for r in again.rounds))
    )
    file.write_bytes(tiny.save(tmp_path / "other.safetensors", to_kohya(
        {n: p.times(2) for n, p in lora.items()}, lambda n: f"lora_{n.replace('.', '_')}", torch.float32
    )[0]).read_bytes())  # fmt: skip
    with pytest.raises(SpinliteError, match="the LoRA to start from has changed"):
        train(load_settings(str(again.run.folder / "settings.toml"), run__rounds=3), again.run.folder, Quiet())
