"""What `inspect` says of files: base, layout, and what each program was seen to load of them."""

import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Screen
from torch import Tensor

from spinlite.cli import inspect_screen
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.export.reports import LoraReport, ModelReport
from spinlite.families.names import kohya_name, original_name
from spinlite.families.programs import PROGRAMS
from spinlite.lora.layouts import to_diffusers, to_kohya
from spinlite.lora.tensors import Pair, norm
from tests.export.test_write import KINDS, LISTS, real_shapes
from tests.families import tiny

Lora = dict[str, Pair]
Tensors = dict[str, Tensor]
ALL = [*PROGRAMS]


def lora_of(kind: str, scopes: set[str], rank: int = 2) -> Lora:
    """The modules of a published model in those scopes, the smallest that has their shapes."""
    torch.manual_seed(0)
    rows = [line.split("\t") for line in (LISTS / f"lora-{kind}.tsv").read_text(encoding="utf-8").splitlines()]
    shapes = real_shapes(kind)
    found = {}
    for name, shape in ((name, shapes[name]) for scope, name, _ in rows if scope in scopes):
        found[name] = Pair(torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2)))
    return found


def shown(report: Any) -> str:
    """The screen, its tables' lines unwrapped."""
    screen = Screen(width=300, file=io.StringIO(), highlight=False, soft_wrap=True)
    inspect_screen.show(screen, report)
    return re.sub(" +", " ", screen.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue]


def written(layout: str, kind: str, lora: Lora) -> tuple[Tensors, dict[str, str]]:
    """A LoRA as somebody writes it, alpha twice the rank where there is one."""
    said = {"ss_base_model_version": {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}[kind]}
    of: Any = KINDS[kind]

    def key(name: str) -> str:
        unet = name.startswith("unet.")
        if unet and layout in ("kohya blocks", "kohya te1"):
            return kohya_name(name, "sd1")
        if unet and layout == "kohya original":
            return "lora_unet_" + original_name(name.removeprefix("unet."), kind == "sdxl").replace(".", "_")
        plain = kohya_name(name, of)
        return plain.replace("lora_te_", "lora_te1_") if layout == "kohya te1" else plain

    if layout.startswith("kohya"):
        return to_kohya(lora, key, torch.float16)[0], said
    tensors = to_diffusers(lora, torch.float16)
    match layout:
        case "peft":
            return {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in tensors.items()}, {}
        case "saved with alpha":  # as diffusers does since transformers 5.6
            ranks = {f"{part}.{word}": 2 * (word == "lora_alpha") + 2 for part in ("unet", "text_encoder", "text_encoder_2")
                     for word in ("r", "lora_alpha")}  # fmt: skip
            flat = {k.replace("text_encoder.text_model.", "text_encoder."): v for k, v in tensors.items()}
            flat = {k.replace("text_encoder_2.text_model.", "text_encoder_2."): v for k, v in flat.items()}
            return flat, {"lora_adapter_metadata": json.dumps(ranks)}
    return tensors, {"format": "pt"}


# (layout, scopes, modules): how many act as they should, by program, where not all do; None: the file is refused. As it was
# seen with the programs' own key-mapping code.
SD15: list[tuple[str, str, int, dict[str, int | None]]] = [
    ("kohya blocks", "lin te", 264, {}),
    ("kohya blocks", "lin conv te", 350, {}),
    ("kohya blocks", "lin conv top", 282, {"sd-scripts": 278}),
    ("kohya te1", "lin te", 264, {"SD.Next": 192, "InvokeAI": 192, "sd-scripts": 192}),
    ("kohya original", "lin te", 264, {"InvokeAI": 72, "sd-scripts": 72, "diffusers": None}),
    ("kohya original", "lin conv te", 350, {"SD.Next": 349, "InvokeAI": 72, "sd-scripts": 72, "diffusers": None}),
    ("kohya original", "lin conv top", 282, {"SD.Next": 281, "InvokeAI": 0, "sd-scripts": 0, "diffusers": 4}),
    ("diffusers", "lin te", 264, {"A1111 1.10": 0, "ComfyUI, SwarmUI": 136, "reForge": 136, "Forge": None, "SD.Next": 0,
                                  "InvokeAI": None, "sd-scripts": 0}),
    ("diffusers", "lin conv top", 282, {"A1111 1.10": 0, "ComfyUI, SwarmUI": 154, "reForge": 154, "Forge": None, "SD.Next": 0,
                                        "InvokeAI": None, "sd-scripts": 0}),
    ("saved with alpha", "lin te", 264, {"A1111 1.10": 0, "ComfyUI, SwarmUI": 0, "reForge": 0, "Forge": None, "SD.Next": 0,
                                         "InvokeAI": None, "sd-scripts": 0}),
    ("peft", "lin", 192, {name: None if name in ("Forge", "InvokeAI") else 0 for name in ALL}),
]  # fmt: skip
SDXL: list[tuple[str, str, int, dict[str, int | None]]] = [
    ("kohya original", "lin te", 986, {}),
    ("kohya original", "lin conv te", 1052, {}),
    ("kohya original", "lin conv top", 794, {"sd-scripts": 788}),
    ("kohya blocks", "lin te", 986, {}),
    ("kohya blocks", "lin conv te", 1052, {"A1111 1.10": 1051}),
    ("kohya blocks", "lin conv top", 794, {"A1111 1.10": 791, "sd-scripts": 788, "diffusers": 792}),
    ("diffusers", "lin te", 986, {"A1111 1.10": 0, "ComfyUI, SwarmUI": 426, "Forge": None, "SD.Next": 0, "InvokeAI": None,
                                  "sd-scripts": 0, "reForge": None}),
    ("saved with alpha", "lin te", 986, {"A1111 1.10": 0, "ComfyUI, SwarmUI": 0, "reForge": 0, "Forge": None, "SD.Next": 0,
                                         "InvokeAI": None, "sd-scripts": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "case"), [("sd15", case) for case in SD15] + [("sdxl", case) for case in SDXL],
    ids=lambda x: x if isinstance(x, str) else f"{x[0]}, {x[1]}",
)  # fmt: skip
def test_each_program_is_said_to_load_what_it_was_seen_to_load(kind: str, case: Any, tmp_path: Path):
    layout, scopes, count, fewer = case
    lora = lora_of(kind, set(scopes.split()), 1 if kind == "sdxl" else 2)
    tensors, metadata = written(layout, kind, lora)
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors, metadata))
    assert isinstance(found, LoraReport) and found.base == {"sd15": "SD 1.x", "sdxl": "SDXL"}[kind] and not found.notes
    assert sum(found.modules.values()) == len(lora) == count == found.programs[0].of
    said = {v.program: v for v in found.programs}
    assert said.pop("spinlite --init-lora").right == count
    assert {name: v.right for name, v in said.items()} == {name: fewer.get(name, count) or 0 for name in ALL}
    for name, v in said.items():
        assert bool(v.why) == (v.right < count)
        if name in fewer and fewer[name] is None:
            assert v.why.startswith(("refuses", "does not recognise", "not shown")), v


def test_what_is_said_of_a_lora(tmp_path: Path):
    lora = lora_of("sd15", {"lin"})
    lora = {name: pair.times(0.0 if "up_blocks.3" in name else 1.0) for name, pair in lora.items()}
    tensors, metadata = written("kohya", "sd15", lora)
    metadata |= {"modelspec.prediction_type": "v", "sshs_model_hash": "0" * 64}
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors, metadata))
    assert isinstance(found, LoraReport)
    assert (found.what, found.layout, found.rank, found.precision) == ("LoRA", "kohya, diffusers' block names", "2", "fp16")
    assert found.alpha.endswith("(every module)") and found.prediction == "v"
    assert len(found.notes) == 1 and "does not match its data" in found.notes[0]
    blocks = {block.name: block for block in found.blocks}
    assert list(blocks) == ["down 0", "down 1", "down 2", "mid", "up 1", "up 2", "up 3"]
    whole = sum(norm(pair) ** 2 for name, pair in lora.items() if "mid_block" in name) ** 0.5
    assert blocks["mid"].norm == pytest.approx(whole, rel=1e-3) and blocks["up 3"].norm == 0
    assert json.loads(inspect_screen.as_json(found))["blocks"][3]["modules"] == blocks["mid"].modules


NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {f"{NAME}.lora_down.weight": torch.ones(4, 1280), f"{NAME}.lora_up.weight": torch.ones(1280, 4)}
KINDS_OF: dict[str, tuple[Mapping[str, Tensor], str, str]] = {
    "dora": (PAIR | {f"{NAME}.dora_scale": torch.ones(1280, 1)}, "DoRA", "SD 1.x"),
    "loha": ({f"{NAME}.hada_w1_a": torch.ones(2, 2)}, "LoHa", "SD 1.x"),
    "lokr": ({f"{NAME}.lokr_w1": torch.ones(2, 2), f"{NAME}.alpha": torch.ones(())}, "LoKr", "SD 1.x"),
    "oft": ({f"{NAME}.oft_blocks": torch.ones(2, 2, 2)}, "OFT", "SD 1.x"),
    "flux": ({f"lora_unet_double_blocks_0_img_attn_proj.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")},
             "LoRA", "FLUX or a relative of it"),
    "sd2": ({f"{NAME.replace('attn1_to_q', 'attn2_to_k')}.lora_down.weight": torch.ones(4, 1024),
             f"{NAME.replace('attn1_to_q', 'attn2_to_k')}.lora_up.weight": torch.ones(1280, 4)}, "LoRA", "SD 2.x"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS_OF)
def test_other_kinds_are_named_for_what_they_are(name: str, tmp_path: Path):
    tensors, what, base = KINDS_OF[name]
    found = inspect(tiny.save(tmp_path / "x.safetensors", dict(tensors)))
    assert isinstance(found, LoraReport) and found.what == what and found.base == base
    if what == "DoRA":
        said = {v.program: v for v in found.programs}
        assert said["SD.Next"].right == 1 and said["ComfyUI, SwarmUI"].right == 0 and "magnitudes" in said["diffusers"].why
        assert "is a DoRA" in said["spinlite --init-lora"].why
    elif what != "LoRA":
        assert not found.programs and not found.notes and f"does not know which programs load a {what}" in shown(found)


STRANGE: dict[str, tuple[Mapping[str, Tensor], dict[str, str], str]] = {
    "mixed alphas": (PAIR | {f"{NAME}.alpha": torch.tensor(1.0)} | {
        f"{NAME[:-1]}{leaf}.{end}": value for leaf in "kv" for end, value in
        {"lora_down.weight": torch.ones(4, 1280), "lora_up.weight": torch.ones(1280, 4), "alpha": torch.tensor(2.0)}.items()
    }, {}, "diffusers 2 of 3 1 lost: alphas differ"),
    "foreign keys": (PAIR | {"bundle_emb.x": torch.ones(1)}, {}, "diffusers nothing refuses the file: it has keys that"),
    "half": ({f"{NAME}.lora_down.weight": torch.ones(4, 1280)}, {}, "! holds half of the module"),
    "two alphas": (PAIR | {f"{NAME}.alpha": torch.tensor(1.0)}, {"lora_adapter_metadata": "{}"}, "alphas both as tensors"),
    "no cross-attention": (PAIR, {}, "InvokeAI nothing does not recognise the file"),
    "other sizes": ({k: v[:, :8] if "down" in k else v for k, v in PAIR.items()}, {}, "! 1 modules with other sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_strange_is_said(name: str, tmp_path: Path):
    tensors, metadata, words = STRANGE[name]
    found = inspect(tiny.save(tmp_path / "x.safetensors", dict(tensors), metadata))
    assert words in shown(found), shown(found)


def test_a_header_that_lies_or_swears_breaks_nothing(tmp_path: Path):
    """Anybody wrote it: markup, JSON of another shape, text without end."""
    metadata = {
        "modelspec.title": "[red]x[/] [/bold]", "ss_tag_frequency": "[1, 2]", "ss_training_comment": "a" * 10_000,
        "spinlite.strength": "[]", "modelspec.description": "line\nline", "ss_num_train_images": "", 
        "lora_adapter_metadata": "[", "ss_base_model_version": "sdxl_base_v1-0", "modelspec.thumbnail": "data:" + "x" * 2**20,
    }  # fmt: skip
    found = inspect(tiny.save(tmp_path / "[x].safetensors", dict(PAIR), metadata))
    said = shown(found)
    assert "[x].safetensors LoRA for SDXL" in said and "title [red]x[/] [/bold]" in said and "says line line" in said
    assert "! its header takes 1.0 MiB" in said and len(said) < 4000
    assert json.loads(inspect_screen.as_json(found))["metadata"]["modelspec.thumbnail"] == f"{5 + 2**20} characters"


KEYS = {end: f"{NAME}.{end}" for end in ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")}
CONV = "lora_unet_mid_block_resnets_0_conv1"
TUCKER = {
    f"{CONV}.lora_down.weight": torch.ones(2, 1280, 1, 1), f"{CONV}.lora_mid.weight": torch.ones(2, 2, 3, 3),
    f"{CONV}.lora_up.weight": torch.ones(1280, 2, 1, 1),
}  # fmt: skip
NAN: dict[str, Tensor | None] = {KEYS["lora_up.weight"]: torch.full((1280, 4), torch.nan)}
OTHER = NAME.replace("attn1_to_q", "attn2_to_k")
CROSS = {f"{OTHER}.lora_down.weight": torch.ones(4, 768), f"{OTHER}.lora_up.weight": torch.ones(1280, 4)}
COMFY = {"A1111 1.10", "ComfyUI, SwarmUI", "reForge", "Forge", "SD.Next", "InvokeAI"}
# tensors changed (None: gone) -> programs that load both modules, programs that load nothing; the others lose one of two
FAULTS: dict[str, tuple[Mapping[str, Tensor | None], set[str], set[str]]] = {
    "no up": ({KEYS["lora_up.weight"]: None}, set(), {"A1111 1.10", "InvokeAI", "diffusers"}),
    "no down": ({KEYS["lora_down.weight"]: None}, set(),
                {"A1111 1.10", "ComfyUI, SwarmUI", "reForge", "Forge", "InvokeAI", "diffusers"}),
    "unfit": ({KEYS["lora_up.weight"]: torch.ones(1280, 3)}, set(), {"InvokeAI", "sd-scripts", "diffusers"}),
    "alpha 0": ({KEYS["alpha"]: torch.zeros(())}, {"sd-scripts"}, set()),
    "nan": (NAN, set(), set(ALL)),
    "rank 0": ({KEYS["lora_up.weight"]: torch.ones(1280, 0), KEYS["lora_down.weight"]: torch.ones(0, 1280)}, set(), set(ALL)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_programs_do_with_a_module_that_is_not_right(name: str, tmp_path: Path):
    changed, whole, nothing = FAULTS[name]
    tensors = {key: value for key, value in {**PAIR, **CROSS, **changed}.items() if value is not None}
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors))
    assert isinstance(found, LoraReport) and found.notes
    said = {v.program: v for v in found.programs if v.program in PROGRAMS}
    assert {name for name, v in said.items() if v.right == 2} == whole
    assert {name for name, v in said.items() if v.right == 0} == nothing
    assert found.programs[-1].program == "spinlite --init-lora" and found.programs[-1].right == 0


DOTTED = "mid_block.attentions.0.transformer_blocks.0.attn2"
ENDS = {"down": torch.ones(4, 768), "up": torch.ones(1280, 4)}
# one module under a rarer name -> the programs that load it
NAMED: dict[str, tuple[dict[str, Tensor], set[str]]] = {
    "dotted, with alpha": (
        {f"unet.{DOTTED}.to_k.lora_A.weight": ENDS["down"], f"unet.{DOTTED}.to_k.lora_B.weight": ENDS["up"],
         f"unet.{DOTTED}.to_k.alpha": torch.tensor(2.0)}, set(),
    ),
    "processor": (
        {f"unet.{DOTTED}.processor.to_k_lora.{end}.weight": t for end, t in ENDS.items()},
        {"ComfyUI, SwarmUI", "reForge", "Forge", "diffusers"},
    ),
    "processor without unet.": (
        {f"{DOTTED}.processor.to_k_lora.{end}.weight": t for end, t in ENDS.items()}, {"ComfyUI, SwarmUI", "reForge", "Forge"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_rarer_names_of_a_module_are_read_where_programs_read_them(name: str, tmp_path: Path):
    tensors, programs = NAMED[name]
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors))
    assert isinstance(found, LoraReport) and not found.notes
    assert {v.program for v in found.programs if v.right} == programs | {"spinlite --init-lora"}


def test_lora_mid_is_read_where_programs_read_it(tmp_path: Path):
    found = inspect(tiny.save(tmp_path / "x.safetensors", {**PAIR, **CROSS, **TUCKER}))
    assert isinstance(found, LoraReport)
    assert {v.program for v in found.programs if v.right == 3} == COMFY | {"spinlite --init-lora"}
    assert {v.program for v in found.programs if v.right == 0} == {"sd-scripts", "diffusers"}


def test_a_file_of_zeros_or_nan_is_called_so_first(tmp_path: Path):
    zeros = {key: value * 0 for key, value in PAIR.items()}
    found = inspect(tiny.save(tmp_path / "x.safetensors", zeros))
    assert isinstance(found, LoraReport) and found.notes[0] == "this LoRA changes nothing: all its changes are zero"
    found = inspect(
        tiny.save(tmp_path / "x.safetensors", {key: value for key, value in (PAIR | NAN).items() if value is not None})
    )
    assert isinstance(found, LoraReport)
    assert found.notes[0] == f"is broken: {KEYS['lora_up.weight']} holds NaN or infinite numbers"


@pytest.mark.parametrize(("kind", "modules"), [("sd15", 264), ("sdxl", 986)])
def test_comfyuis_names_are_read(kind: str, modules: int, tmp_path: Path):
    """Original names of blocks with dots; ComfyUI takes them with diffusion_model. only, and the others not at all."""
    lora = lora_of(kind, {"lin", "te"}, 1)
    clips = {"text_encoder.": "text_encoders.clip_l.transformer.", "text_encoder_2.": "text_encoders.clip_g.transformer."}

    def key(name: str) -> str:
        part, _, module = name.partition(".")
        return clips[f"{part}."] + module if part != "unet" else "diffusion_model." + original_name(module, kind == "sdxl")

    tensors = to_kohya(lora, key, torch.float16)[0]
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors))
    assert isinstance(found, LoraReport) and not found.notes and found.layout == "ComfyUI, original block names"
    said = {v.program: v.right for v in found.programs}
    assert said.pop("spinlite --init-lora") == said.pop("ComfyUI, SwarmUI") == modules
    assert said.pop("reForge") == modules and not any(said.values())  # Forge: the text encoders' keys are left over
    bare = {name.removeprefix("diffusion_model."): value for name, value in tensors.items() if "diffusion_model" in name}
    found = inspect(tiny.save(tmp_path / "x.safetensors", bare))
    assert isinstance(found, LoraReport) and not any(v.right for v in found.programs[:-1])
    assert found.programs[-1].right == sum(name.startswith("unet.") for name in lora)


def test_a_module_under_both_names_is_said_to_be_there_twice(tmp_path: Path):
    other = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    found = inspect(tiny.save(tmp_path / "x.safetensors", {**PAIR, **{k.replace(NAME, other): v for k, v in PAIR.items()}}))
    assert isinstance(found, LoraReport)
    assert f"1 modules are there twice, e.g. {NAME} and {other}: programs keep one" in found.notes
    assert "changes one module twice" in found.programs[-1].why


def test_a_lora_is_inspected_without_torch(tmp_path: Path):
    """They take ten times as long to import as all the rest takes to run."""
    path = tiny.save(tmp_path / "x.safetensors", {**PAIR, **{k: v.to(torch.bfloat16) for k, v in CROSS.items()}})
    code = (
        "import sys; from spinlite.cli.app import main\n"
        "sys.argv = ['spinlite', 'inspect', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('HEAVY', [m for m in ('torch', 'diffusers', 'transformers', 'peft', 'PIL') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "x.safetensors  LoRA for SD 1.x" in ran.stdout and "HEAVY []" in ran.stdout, ran.stdout + ran.stderr


# Checkpoints

WIDE = {"sd15": 768, "sd21": 1024, "refiner": 1280, "sdxl": 2048}
RELATIVES = [  # width of captions, channels of input, text encoders
    ("sd15", 9, True), ("sd15", 8, True), ("sd21", 5, True), ("sdxl", 9, True), ("refiner", 4, True), ("sd15", 4, False),
    ("sdxl", 4, False),
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("case", RELATIVES, ids=str)
def test_relatives_of_stable_diffusion_are_no_transformers(case: tuple[str, int, bool], prefix: str, tmp_path: Path):
    kind, channels, encoders = case
    block = "input_blocks.4.1" if prefix else "down_blocks.1.attentions.0"
    tensors = {
        f"{prefix}{'input_blocks.0.0' if prefix else 'conv_in'}.weight": torch.ones(320, channels, 3, 3),
        f"{prefix}{block}.transformer_blocks.0.attn2.to_k.weight": torch.ones(640, WIDE[kind]),
        f"{prefix}output_blocks.0.1.transformer_blocks.0.attn1.to_k.weight": torch.ones(1, 1),
    } | ({"conditioner.embedders.0.model.ln_final.weight": torch.ones(1)} if encoders else {})
    found = inspect(tiny.save(tmp_path / "x.safetensors", tensors))
    assert isinstance(found, ModelReport) and found.use.startswith("can not be trained on")
    assert found.what and "transformer" not in found.what


def test_a_checkpoint_is_known_by_its_parts(configs: Path, tmp_path: Path):
    for kind, title in (("sd15", "SD 1.x"), ("sd21", "SD 2.x"), ("sdxl", "SDXL")):
        path = configs / f"{kind}.safetensors"
        found = inspect(path)
        assert isinstance(found, ModelReport) and found.what == f"{title} checkpoint, original layout"
        names = {"UNet", "VAE", "text encoder"} | ({"text encoder 2"} if kind == "sdxl" else set())
        assert {part.name for part in found.parts} == names and {part.precision for part in found.parts} == {"fp32"}
        assert found.prediction == "not stated" and found.hash == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "--set model.base=" in shown(found)
    marked = tiny.original(configs / "sdxl") | {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    found = inspect(tiny.save(tmp_path / "v.safetensors", marked))
    assert isinstance(found, ModelReport) and found.prediction == "v (by its key v_pred)" and found.zero_snr
    pruned = {k: v for k, v in marked.items() if not k.startswith("conditioner.")}
    found = inspect(tiny.save(tmp_path / "p.safetensors", pruned))
    assert isinstance(found, ModelReport) and "can not be trained on" in found.use
    assert "text encoders and VAE are missing" in found.what
    found = inspect(tiny.save(tmp_path / "f.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}))
    assert isinstance(found, ModelReport) and "FLUX" in found.what


def test_what_can_not_be_inspected_is_named(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"\x10")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    for name, words in {"x.safetensors": "is not a whole safetensors file", "x.pt": "is not a .safetensors file",
                        "y.safetensors": "no file", ".": "no file"}.items():  # fmt: skip
        with pytest.raises(SpinliteError, match=words):
            inspect(tmp_path / name)
