"""The motion module of AnimateDiff before it is loaded: its files, what is refused, its names and sizes, LoRA files for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from torch.testing import assert_close

from spinlite.config.load import validate_settings
from spinlite.config.settings import MOTION, Model
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.merge import Base, merge
from spinlite.families import hub
from spinlite.families.kinds import KINDS
from spinlite.families.load import clip_rule, load_family, note_of, require_base, size_and_step, token_counter
from spinlite.families.motion import MotionModule
from spinlite.families.motion_kinds import is_motion, lora_name
from spinlite.families.names import module_shapes
from spinlite.lora.tensors import Pair
from spinlite.memory.device import Device, Levers
from tests.families import tiny, tiny_motion


@pytest.fixture(scope="module")
def made(tiny_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd15/ with a motion module in sd15/motion_adapter, the same as mm.safetensors, and sd15.safetensors."""
    root = tmp_path_factory.mktemp("configs")
    shutil.copytree(tiny_bases / "sd15", root / "sd15")
    shutil.copy(tiny_bases / "sd15.safetensors", root)
    tiny_motion.file(tiny_motion.make(root / "sd15"), root / "mm.safetensors")
    return root


@pytest.fixture
def bases(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files are read by the settings of the small models."""
    monkeypatch.setattr("spinlite.families.record.CONFIGS", made)
    return made


def load(base: Path | str, motion: Path | str | None, precision: str = "fp32", device: str = "cpu") -> Any:
    where = Device(torch.device(device), "a test", Levers(precision))
    return load_family(Model(base=str(base), motion=motion and str(motion), frames=3 if motion else None), where)


def test_files_of_base_and_module_are_what_diffusers_makes_of_their_folders(bases: Path):
    still, moving = load(bases / "sd15", None, "bf16"), load(bases / "sd15.safetensors", bases / "mm.safetensors", "bf16")
    join: Any = UNetMotionModel.from_unet2d
    joined = join(still.net, MotionAdapter.from_pretrained(str(bases / "sd15" / "motion_adapter"))).state_dict()
    found = moving.net.state_dict()
    assert found.keys() == joined.keys() and all(torch.equal(found[name], value) for name, value in joined.items())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert moving.base_hash != still.base_hash and moving.picture_hash != still.picture_hash
    assert (moving.clips.fps, moving.clips.most, moving.clips.longest) == (8, 3, 8)


def test_modules_of_every_version_are_told_apart_by_their_tensors(bases: Path, tmp_path: Path):
    folder = tiny_motion.make(tmp_path, use_motion_mid_block=True)
    file = tiny_motion.file(folder, tmp_path / "v2.safetensors", longest=6)
    module = MotionModule(str(file))
    assert module.config["use_motion_mid_block"] and module.config["motion_max_seq_length"] == 6
    assert MotionModule(f"blank:{file}").load(torch.float32).mid_block
    named = Model(base=f"blank:{bases / 'sd15'}", motion=str(file), frames=6)
    assert clip_rule(named)
    with pytest.raises(SpinliteError, match="frames = 7, but this model's clips have 6 frames at the most") as refused:
        clip_rule(named.model_copy(update={"frames": 7}))
    assert refused.value.fix == "set model.frames = 6"


def test_what_is_no_motion_module_for_the_base_is_refused_with_what_to_type(bases: Path, tiny_bases: Path, tmp_path: Path):
    sd15, first = bases / "sd15", f"add --set model.motion={MOTION}"
    wider = tiny_motion.make(tmp_path, "wider", block_out_channels=(8, 8, 16, 16))
    picture = tiny_motion.make(tmp_path, "pia", conv_in_channels=9)
    wrong = {
        "": (tiny.save(tmp_path / "a.safetensors", {"x": torch.zeros(1)}), r"is no motion module for SD 1.x: it has no down_"),
        "file": (
            tiny_motion.file(wider, tmp_path / "b.safetensors"),
            "it has no down_blocks.0.motion_modules.0.proj_in of 16 x",
        ),
        "folder": (wider, "is a motion module for networks of other sizes than"),
        "pia": (picture, r"needs a picture to begin with \(PIA\)"),
        "unet": (sd15 / "unet", "is no motion module: its config.json is of something else"),
    }
    for motion, words in wrong.values():
        with pytest.raises(SpinliteError, match=words) as refused:
            require_base(Model(base=str(sd15), motion=str(motion)))
        assert refused.value.fix == first or "an SD 1.5" in refused.value.fix
    with pytest.raises(SpinliteError, match=r"mm_sd_v15_v2\.ckpt is a pickle file") as refused:
        require_base(Model(base=str(sd15), motion="models/mm_sd_v15_v2.ckpt"))
    assert refused.value.fix == f"{first[:-1]}2, or name a .safetensors file"
    with pytest.raises(SpinliteError, match="there is no file"):
        require_base(Model(base=str(sd15), motion=str(tmp_path / "none.safetensors")))
    with pytest.raises(SpinliteError, match=r"model\.motion is for SD 1\.x, and .* is SD 2.x"):
        require_base(Model(base=str(tiny_bases / "sd21"), motion=str(sd15)))
    with pytest.raises(SpinliteError, match=r"mm.safetensors is a motion module \(AnimateDiff\)") as refused:
        require_base(Model(base=str(bases / "mm.safetensors")))
    assert "--set model.motion=" in refused.value.fix
    with pytest.raises(SpinliteError, match=r"teaches a motion module, and model\.motion names none"):
        validate_settings({"model": {"targets": "motion"}})


def test_a_module_on_the_hub_is_taken_from_the_cache_if_the_hub_does_not_answer(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.answers.cache_clear()
    with pytest.raises(SpinliteError, match="this computer has no copy of me/moves") as refused:
        require_base(Model(base=str(bases / "sd15"), motion="me/moves"))
    assert "set model.motion to a folder" in refused.value.fix
    root = tmp_path / "models--me--moves"
    shutil.copytree(bases / "sd15" / "motion_adapter", root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    found, here = (MotionModule(place).load(torch.float32).state_dict() for place in ("me/moves", str(bases / "sd15")))
    assert found.keys() == here.keys() and all(torch.equal(found[name], value) for name, value in here.items())
    hub.answers.cache_clear()


def test_a_blank_one_has_the_published_sizes_and_names():
    v1, v2 = MOTION[:-2], f"{MOTION[:-1]}2"
    with torch.device("meta"):
        family = load("blank:sd1", f"blank:{v2}", "bf16", "meta")
    weights = sum(p.numel() for p in family.net.parameters())
    assert weights == 859_520_964 + 453_209_280 and all(p.is_meta for p in family.net.parameters())
    assert KINDS["animatediff"].lora.shapes() == module_shapes(family.net)
    learns = {choice: len(names) for choice, names in family.lora_targets.items()}
    assert learns == {"linear": 192, "all": 278, "motion": 168}
    assert not any(map(is_motion, family.lora_targets["all"])) and all(map(is_motion, family.lora_targets["motion"]))
    rules = [clip_rule(Model(base="blank:sd1", motion=each)) for each in (v1, v2, MOTION)]
    assert [(rule.fps, rule.most, rule.longest) for rule in rules if rule] == [(8, 16, 24), (8, 16, 32), (8, 16, 32)]
    for model in (Model(base="blank:animatediff"), Model(base="someone/mine", family="animatediff", motion=MOTION)):
        assert clip_rule(model) == rules[2] and "16 frames" in note_of(model) and size_and_step(model) == ((512, 512), 64)
        counter = token_counter(model)
        assert counter and counter.count(["a red cat"]) == [3]


def test_a_motion_lora_is_recognised_and_judged_in_every_naming(tmp_path: Path):
    shapes = {name: shape for name, shape in KINDS["animatediff"].lora.shapes().items() if is_motion(name)}
    attention = {name: shape for name, shape in shapes.items() if ".attn" in name and not name.startswith("mid_block")}

    def keys(name: str, naming: str) -> list[str]:
        if naming == "older":  # as the authors' motion LoRAs are on the hub
            stem, _, leaf = f"unet.{name}".removesuffix(".0").rpartition(".")
            return [f"{stem}.processor.{leaf}_lora.{part}.weight" for part in ("down", "up")]
        ends = ("down", "up") if naming == "animatediff" else ("lora_A", "lora_B")
        return [f"{lora_name(f'unet.{name}', naming)}.{end}.weight" for end in ends]  # pyright: ignore[reportArgumentType]

    for naming, there in (("animatediff", (160, 160, 0)), ("diffusers", (0, 0, 160)), ("older", (0, 0, 160))):
        sizes = {key: size for name, (out, ins) in attention.items()
                 for key, size in zip(keys(name, naming), ((1, ins), (out, 1)), strict=True)}  # fmt: skip
        path = tiny.save(tmp_path / f"{naming}.safetensors", {key: torch.full(size, 0.1) for key, size in sizes.items()})
        report: Any = inspect(path)
        assert report.base == "AnimateDiff on SD 1.x" and report.modules == {"UNet": 160}
        assert tuple(verdict.right for verdict in report.programs) == (*there, 160)


def test_a_lora_of_sd_15_goes_into_its_file_and_a_motion_lora_does_not(bases: Path, tmp_path: Path):
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = Pair(torch.ones(1, 16), torch.ones(16, 1))
    base, to = Base(str(bases / "sd15.safetensors"), torch.float32), tmp_path / "merged.safetensors"
    merge({f"unet.{module}": pair}, base, to, None, {}, lambda done, whole: None)
    [place] = base.places(f"unet.{module}")
    assert_close(Base(str(to), torch.float32).get(place.key), base.get(place.key) + 1)
    motion = "unet.mid_block.motion_modules.0.transformer_blocks.0.attn1.to_q"
    with pytest.raises(SpinliteError, match=f"sd15.safetensors has no {motion}") as refused:
        merge({motion: pair}, base, to, None, {}, lambda done, whole: None)
    assert refused.value.fix == "keep it as a file: it is a motion LoRA"
