"""LoRA files as they are written: every key at real sizes, the change of every module, the header."""

import hashlib
import io
import json
import struct
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.settings import Model, Settings
from spinlite.errors import SpinliteError
from spinlite.export.export import ExportOptions, _without_folders, choose_round, export
from spinlite.export.verify import compare_modules, compare_step
from spinlite.export.write import write_lora
from spinlite.families.load import load_family
from spinlite.families.names import kohya_name, module_shapes
from spinlite.families.record import CONFIGS
from spinlite.families.sd import StableDiffusion
from spinlite.lora.layouts import balance, complete_attention, to_diffusers, to_kohya
from spinlite.lora.metadata import TAGS, HeaderInfo, build_header, tag_counts
from spinlite.lora.svd import lower_rank, nearest_pair
from spinlite.lora.tensors import Lora, Pair, lora_of_snapshot, norm
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.store import read_tensors
from spinlite.selfplay import train
from tests.toy import TOY, Quiet

LISTS = Path(__file__).parents[1] / "families" / "modules"
CPU = device.Device(torch.device("cpu"), "a test")
KINDS = {"sd15": "sd1", "sdxl": "sdxl"}


def real_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Of every linear layer and convolution of a published model, by full name."""
    unet: Any = UNet2DConditionModel
    found = {}
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": unet.from_config(unet.load_config(CONFIGS / kind, subfolder="unet"))}
        for name in ("text_encoder", "text_encoder_2"):
            if (CONFIGS / kind / name).is_dir():
                parts[name] = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / kind / name))
    for part, net in parts.items():
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                inner = "" if part == "unet" else "text_model."
                found[f"{part}.{inner}{name.removeprefix('text_model.')}"] = tuple(module.weight.shape)
    return found


def pair_for(shape: tuple[int, ...], rank: int, size: float = 0.01) -> Pair:
    rank = min(rank, shape[0], shape[1])
    return Pair(torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) * size)


def read_as_the_programs_do(tensors: dict[str, Tensor], key: str) -> Tensor:
    down, up = (tensors[f"{key}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
    return tensors[f"{key}.alpha"].item() / len(down) * up @ down


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_file_at_real_sizes(kind: str):
    """All scopes, mixed ranks and sizes: keys from the lists, shapes of the modules, one alpha, each module's change."""
    torch.manual_seed(0)
    rows = [line.split("\t") for line in (LISTS / f"lora-{kind}.tsv").read_text(encoding="utf-8").splitlines()]
    shapes = real_shapes(kind)
    lora = {name: pair_for(shapes[name], 1 + i % 3, 10.0 ** -(i % 5)) for i, (_, name, _) in enumerate(rows)}
    keys = {name: key for _, name, key in rows}
    tensors, alpha = to_kohya(lora, lambda name: kohya_name(name, KINDS[kind]), torch.float16)  # pyright: ignore[reportArgumentType]
    suffixes = ("lora_down.weight", "lora_up.weight", "alpha")
    assert tensors.keys() == {f"{key}.{suffix}" for key in keys.values() for suffix in suffixes}
    assert {t.item() for name, t in tensors.items() if name.endswith(".alpha")} == {alpha}
    assert all(t.ndim == 0 and t.dtype == torch.float16 for name, t in tensors.items() if name.endswith(".alpha"))
    for name, pair in list(lora.items())[:: 1 if kind == "sd15" else 7]:
        got, change = read_as_the_programs_do(tensors, keys[name]), pair.change.double().flatten(1)
        assert pair.shape == shapes[name] and tensors[f"{keys[name]}.lora_down.weight"].shape == pair.down.shape
        assert (got - change).norm() < 1e-3 * change.norm(), name
    assert len({k for k in keys.values()}) == len(rows) == {"sd15": 354, "sdxl": 1058}[kind]


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_change_of_any_size_survives_any_precision(size: float, dtype: torch.dtype):
    """Self-play moves little: a plain fp16 file would lose a change of 1e-8."""
    torch.manual_seed(0)
    lora = {f"unet.{i}": pair_for((6, 8), rank, size * 10.0**-i) for i, rank in enumerate((1, 3, 4))}
    digits = {torch.float16: 5e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}[dtype]
    written = to_kohya(lora, str, dtype)[0]
    plain = to_diffusers(lora, dtype)
    for name, pair in lora.items():
        for got in (
            read_as_the_programs_do(written, name),
            plain[f"{name}.lora_B.weight"].double() @ plain[f"{name}.lora_A.weight"].double(),
        ):
            assert (got - pair.change).norm() < digits * norm(pair)
    assert written["unet.0.alpha"].item() > 0


def test_balancing_changes_no_digit():
    pair = pair_for((6, 8), 3, 1e-6)
    down, up = balance(pair)
    assert torch.equal(up @ down, pair.change) and 0.5 < up.abs().max() / down.abs().max() < 2


def test_an_attention_is_written_whole():
    """A1111 applies SDXL's second text encoder only where q, k, v and out are all there."""
    query = "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj"
    found = complete_attention({query: pair_for((8, 8), 2), "unet.x.attn1.to_q": pair_for((8, 8), 2)})
    added = {f"{query.removesuffix('q_proj')}{leaf}" for leaf in ("k_proj", "v_proj", "out_proj")}
    assert found.keys() == {query, "unet.x.attn1.to_q"} | added
    assert all(not found[name].change.any() and found[name].shape == (8, 8) for name in added)


def test_resizing_keeps_the_largest_directions():
    torch.manual_seed(0)
    pair = pair_for((10, 4, 3, 3), 6)
    u, s, v = torch.linalg.svd(pair.change.flatten(1).double(), full_matrices=False)
    smaller, lost = lower_rank(pair, 2)
    assert smaller.rank == 2 and smaller.down.shape == (2, 4, 3, 3) and smaller.up.shape == (10, 2, 1, 1)
    assert_close(smaller.change.flatten(1).double(), (u[:, :2] * s[:2]) @ v[:2], rtol=1e-4, atol=1e-6)
    assert lost == pytest.approx((s[2:].norm() / s.norm()).item(), rel=1e-4)
    same, nothing = lower_rank(pair, 99)
    assert nothing == 0
    assert_close(same.change, pair.change)
    again, off = nearest_pair(pair.change, 2)
    assert off == pytest.approx(lost, rel=1e-2) and again.shape == pair.shape


# The header


def about(**more: Any) -> HeaderInfo:
    said = {"ss_base_model_version": "sd_v1", "modelspec.resolution": "512x768"}
    return HeaderInfo("mine", said, finished=1.7e9, **more)


def test_hashes_are_of_the_data_alone_and_known(tmp_path: Path):
    tensors = {"a.lora_up.weight": torch.arange(4, dtype=torch.float16).view(2, 2)}
    said = build_header(tensors, {"a": pair_for((2, 2), 2)}, 1.0, about())
    known = hashlib.sha256(struct.pack("<4e", 0, 1, 2, 3)).hexdigest()
    assert said["sshs_model_hash"] == known and said["modelspec.hash_sha256"] == f"0x{known}"
    content = save(tensors, said)
    assert hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest() == known
    large = {"b": torch.arange(600_000, dtype=torch.float32)}
    said = build_header(large, {"b": pair_for((2, 2), 2)}, 1.0, about())
    kohyas = save(large, {k: v for k, v in said.items() if k.startswith("ss_")})
    assert said["sshs_legacy_hash"] == hashlib.sha256(kohyas[2**20 : 2**20 + 2**16]).hexdigest()[:8]


def test_a_header_says_what_programs_parse():
    picture = Image.new("RGB", (64, 64), "red")
    lora = {"unet.a": pair_for((6, 8, 3, 3), 4), "unet.b": pair_for((6, 8), 2)}
    tags = tag_counts(["a cat, red", "a cat , blue", "ünï, 猫"])
    said = build_header({}, lora, 0.5, about(tags=tags, pictures=3, thumbnail=picture, ours={"method": {"name": "spin"}}))
    assert all(isinstance(value, str) for value in said.values())
    assert json.loads(said["ss_tag_frequency"]) == {"mine": {"a cat": 2, "blue": 1, "red": 1, "ünï": 1, "猫": 1}}
    assert json.loads(said["ss_dataset_dirs"]) == {"mine": {"n_repeats": 1, "img_count": 3}}
    assert json.loads(said["ss_bucket_info"]) == {"buckets": {"0": {"resolution": [512, 768], "count": 3}}}
    assert said["ss_network_dim"] == "Dynamic" and said["ss_network_alpha"] == "0.5"
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "0.5"}
    assert said["ss_resolution"] == "(512, 768)" and said["modelspec.date"] == "2023-11-14T22:13:20+00:00"
    assert json.loads(said["spinlite.method"]) == {"name": "spin"}
    kind, _, data = said["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(b64decode(data))).size == (256, 256)
    assert not {"lora_adapter_metadata", "ot_branch", "format"} & said.keys()


def test_the_largest_header_is_below_1_mib():
    """SDXL's modules all, more tags than fit, and a thumbnail that compresses badly."""
    rows = [line.split("\t") for line in (LISTS / "lora-sdxl.tsv").read_text(encoding="utf-8").splitlines()]
    one = Pair(torch.zeros(1, 1), torch.zeros(1, 1))
    lora: Lora = {name: one for _, name, _ in rows}
    tensors, alpha = to_kohya(lora, {name: key for _, name, key in rows}.__getitem__, torch.float16)
    tags = tag_counts([f'"猫" number {i}, \\' for i in range(20_000)])
    assert len(tags) > 1000 and len(json.dumps(tags)) < TAGS
    said = build_header(tensors, lora, alpha, about(tags=tags, thumbnail=Image.effect_noise((256, 256), 100)))
    assert int.from_bytes(save(tensors, said)[:8], "little") < 2**20


# The whole export


def test_a_file_that_is_not_what_was_trained_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = StableDiffusion(Model(base="demo"), CPU)
    torch.manual_seed(0)
    name = "down_blocks.0.resnets.0.conv1"
    lora = {f"unet.{name}": pair_for(tuple(base.net.get_submodule(name).weight.shape), 2)}  # pyright: ignore
    path = tmp_path / "x.safetensors"
    found = write_lora(path, lora, base, about(), "kohya", torch.float16)
    assert found.modules == 1 and found.worst < 1e-3 and found.step is not None and found.step < 1e-2
    wrong = {f"unet.{name}": lora[f"unet.{name}"].times(0.9)}
    with pytest.raises(SpinliteError, match=r"does not hold what was trained.*off by 11"):
        compare_modules(path, wrong, {f"unet.{name}": base.export_name(f"unet.{name}", "kohya")})
    monkeypatch.setattr(StableDiffusion, "export_name", lambda self, name, layout: "lora_unet_down_blocks_0_resnets_0_conv2")
    with pytest.raises(SpinliteError, match=r"a denoising step.*differs by"):
        write_lora(path, lora, base, about(), "kohya", torch.float16)


@pytest.mark.parametrize("kind", ["demo", "sd15", "sdxl"])
def test_in_bf16_a_right_file_passes_and_a_wrong_one_does_not(kind: str, tiny_bases: Path, tmp_path: Path):
    """There rounding is much of what a LoRA does to a prediction."""
    where = device.Device(torch.device("cpu"), "a test", device.Levers("bf16"))
    base = load_family(Model(base="demo" if kind == "demo" else str(tiny_bases / kind)), where)
    torch.manual_seed(0)
    ends = tuple(f".{target}" for target in base.lora_targets["all"])
    shapes = {name: shape for name, shape in module_shapes(base.net).items() if name.endswith(ends)}
    lora = {f"unet.{name}": pair_for(shape, 2, 0.1 / shape[1]) for name, shape in shapes.items()}
    path = tmp_path / "x.safetensors"
    found = write_lora(path, lora, base, about(), "kohya", torch.float16)
    assert found.step is not None and found.step < 0.2
    with pytest.raises(SpinliteError, match="differs by"):
        compare_step(path, {name: pair.times(2.0) for name, pair in lora.items()}, base)


def test_the_files_rounding_may_be_much_of_what_a_strong_lora_does(toy: Settings, tmp_path: Path):
    """Its weights are large, and cancel for the pictures that there are: only a step shows what rounding them does."""
    base = load_family(toy.model, CPU)
    torch.manual_seed(0)
    last, read = base.net.get_submodule("last"), list[torch.Tensor]()
    hook = last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    lora = {"unet.last": pair_for(tuple(last.weight.shape), 4)}  # pyright: ignore
    write_lora(tmp_path / "x.safetensors", lora, base, about(), "kohya", torch.float16)
    hook.remove()
    seen = read[0].flatten(0, -2)
    down = 100 * torch.randn_like(lora["unet.last"].down)
    down -= down @ torch.linalg.pinv(seen) @ seen - lora["unet.last"].down
    strong = {"unet.last": Pair(down, lora["unet.last"].up)}
    found = write_lora(tmp_path / "x.safetensors", strong, base, about(), "kohya", torch.float16)
    assert found.worst < 1e-3 and found.step is not None and found.step < 1e-3
    with pytest.raises(SpinliteError, match="differs by"):
        compare_step(tmp_path / "x.safetensors", strong, base)


@pytest.fixture
def run(toy: Settings, tmp_path: Path) -> Run:
    return train(load_settings(TOY, data__folder=toy.data.folder, judge__stop=False), tmp_path / "runs" / "r", Quiet()).run


def test_any_round_is_exported_as_asked(run: Run, tmp_path: Path):
    base = load_family(run.settings.model, CPU)
    path = tmp_path / "out" / "x.safetensors"
    assert [choose_round(run, word) for word in ("best", "last", "1")] == [run.best, 2, 1]
    said = export(run, base, 1, path, ExportOptions(dtype="fp32", strength=-0.5, sidecars=True))
    tensors, metadata = read_tensors(path)
    state, kept = read_tensors(run.snapshot_path(1))
    for name, pair in lora_of_snapshot(state, json.loads(kept["spinlite"])["scale"]).items():
        got = read_as_the_programs_do(tensors, base.export_name(name, "kohya"))
        assert_close(got, -0.5 * pair.change.double(), rtol=1e-4, atol=1e-7)
    assert said.startswith("3 of 3 modules") and "denoising step" in said
    assert metadata["spinlite.round"] == "1" and "EXPERIMENTAL" in metadata["modelspec.description"]
    assert sum(json.loads(metadata["ss_tag_frequency"])["x"].values()) == int(metadata["ss_num_train_images"]) > 30
    assert json.loads(metadata["spinlite.figures"])["policy_real"] == run.events("judge")[0]["policy_real"]
    assert str(run.folder.parents[1]) not in json.dumps(metadata)
    assert json.loads(metadata["spinlite.settings"])["data"]["folder"] == "swatches"
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (256, 256)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["preferred weight"] == 1.0


def test_what_can_not_be_exported_is_named(run: Run, tmp_path: Path):
    base = load_family(run.settings.model, CPU)
    with pytest.raises(SpinliteError, match=r"has no round 9\nfix: give one of 0 to 2"):
        export(run, base, 9, tmp_path / "x.safetensors", ExportOptions())
    with pytest.raises(SpinliteError, match="'first' is not a round"):
        choose_round(run, "first")
    with pytest.raises(SpinliteError, match="is not a run"):
        Run.open_existing(tmp_path)
    other = load_family(Model(base="1", family="toy"), CPU)
    with pytest.raises(SpinliteError, match="has changed since"):
        export(run, other, 1, tmp_path / "x.safetensors", ExportOptions())


def test_no_place_on_the_computer_is_in_a_header(swatches: Path):
    data = {"folder": str(swatches), "sources": [{"folder": str(swatches)}, {"dataset": "/home/me/pictures"}]}
    settings = validate_settings({"data": data, "model": {"vae": "/home/me/v.safetensors"}})
    text = json.dumps(_without_folders(settings.model_dump()))
    assert str(swatches) not in text and "/home" not in text
    assert text.count('"swatches"') == 2 and '"v.safetensors"' in text and '"pictures"' in text


def test_a_lora_of_zeros_is_written_and_read(run: Run, tmp_path: Path):
    said = export(run, load_family(run.settings.model, CPU), 0, tmp_path / "zero.safetensors", ExportOptions())
    assert said == "this LoRA changes nothing: all its changes are zero"
