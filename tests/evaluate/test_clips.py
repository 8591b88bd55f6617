"""CLIP and its relatives on small random weights, against the references' formulas written out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.evaluate import clips
from spinlite.evaluate.clips import build_clip, clip_config, embedding, looks, padded, square, tokens
from spinlite.evaluate.registry import COLUMNS, NETWORKS
from spinlite.evaluate.weights import Weights
from spinlite.memory.device import choose_device

TEXT, PICTURE, PROJECTION = (2, 24, 2), (2, 32, 2), 16
SMALL = (TEXT, PICTURE, PROJECTION, "gelu")
PROMPTS = ["a cat", "two dogs on a red sofa, oil painting"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = (noise(3, height // 4, width // 4, seed=seed) * 60 + 128).clamp(0, 255)
    smooth = F.interpolate(levels[None], (height, width), mode="bilinear")[0]
    return Image.frombytes("RGB", (width, height), smooth.permute(1, 2, 0).to(torch.uint8).contiguous().numpy().tobytes())


@pytest.fixture(scope="module")
def open_clip() -> dict[str, Tensor]:
    """A random model in open_clip's layout, with large weights, so that mistakes show."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "text_projection": (TEXT[1], PROJECTION), "positional_embedding": (77, TEXT[1]),
        "token_embedding.weight": (49408, TEXT[1]), "visual.class_embedding": (PICTURE[1],),
        "visual.positional_embedding": (257, PICTURE[1]), "visual.proj": (PICTURE[1], PROJECTION),
        "visual.conv1.weight": (PICTURE[1], 3, 14, 14),
    }  # fmt: skip
    for prefix, (layers, width, _), norms in (("", TEXT, ["ln_final"]), ("visual.", PICTURE, ["ln_pre", "ln_post"])):
        blocks = [f"{prefix}transformer.resblocks.{i}." for i in range(layers)]
        for name in [f"{prefix}{norm}" for norm in norms] + [f"{block}ln_{i}" for block in blocks for i in (1, 2)]:
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        for block in blocks:
            for name, (rows, columns) in {
                "attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width),
                "mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width),
            }.items():  # fmt: skip
                shapes |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
    found = {name: 0.3 * noise(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return found | {name: value + 1 for name, value in found.items() if ".ln_" in f".{name}" and name.endswith("weight")}


def reference(weights: Mapping[str, Tensor], x: Tensor, prefix: str, layers: int, heads: int, mask: Tensor | None) -> Tensor:
    """open_clip's transformer: residual blocks of attention and a GELU MLP, each after a layer norm: (B, L, d)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    for i in range(layers):
        block = f"{prefix}transformer.resblocks.{i}"
        y = norm(x, f"{block}.ln_1")
        w, b = weights[f"{block}.attn.in_proj_weight"], weights[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in F.linear(y, w, b).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        y = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, weights[f"{block}.attn.out_proj.weight"], weights[f"{block}.attn.out_proj.bias"])
        y = F.gelu(F.linear(norm(x, f"{block}.ln_2"), weights[f"{block}.mlp.c_fc.weight"], weights[f"{block}.mlp.c_fc.bias"]))
        x = x + F.linear(y, weights[f"{block}.mlp.c_proj.weight"], weights[f"{block}.mlp.c_proj.bias"])
    return x


def reference_cosines(weights: Mapping[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """open_clip's model: the class token of the picture, the end token of the prompt, both projected and of unit length."""
    patches = F.conv2d(pixels, weights["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(patches), 1, -1)
    x = torch.cat([first, patches], 1) + weights["visual.positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    x = reference(weights, x, "visual.", PICTURE[0], PICTURE[2], None)[:, 0]
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_post.weight"], weights["visual.ln_post.bias"])
    shown = F.normalize(x @ weights["visual.proj"], dim=-1)
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    y = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: ids.shape[1]]
    y = reference(weights, y, "", TEXT[0], TEXT[2], mask)
    y = F.layer_norm(y, y.shape[-1:], weights["ln_final.weight"], weights["ln_final.bias"])
    said = F.normalize(y[torch.arange(len(y)), ids.argmax(1)] @ weights["text_projection"], dim=-1)
    return (shown * said).sum(1)


def open_clip_ids(prompts: list[str]) -> Tensor:
    """open_clip pads with 0 to 77, which must not matter."""
    given = tokens(prompts, clean=True)
    rows = [ids[: int(length)] for ids, length in zip(given["input_ids"], given["attention_mask"].sum(1), strict=True)]
    return torch.stack([F.pad(row, (0, 77 - len(row))) for row in rows])


@pytest.mark.parametrize(("scale", "factor"), [(100.0, 100.0), (None, 3.5)])
def test_scores_are_those_of_the_reference_in_open_clips_layout(
    open_clip: dict[str, Tensor], scale: float | None, factor: float
):
    weights = open_clip | {"logit_scale": torch.tensor(3.5).log()}
    look = looks(build_clip(clip_config(SMALL), weights, "x"), Weights(choose_device()), padded, True, scale)
    shown = [picture(300, 200), picture(96, 128, seed=1)]
    wanted = factor * reference_cosines(weights, padded(shown), open_clip_ids(PROMPTS))
    torch.testing.assert_close(look(shown, PROMPTS)["score"], wanted, rtol=1e-4, atol=1e-4)
    swapped = look(shown, PROMPTS[::-1])["score"]
    assert (swapped - wanted).abs().min() > 1e-2 * factor  # the weights are large enough for prompts to matter


def test_a_model_in_transformers_layout_scores_the_same(open_clip: dict[str, Tensor], tmp_path: Path):
    """Also with the wrapped names of a port, and with tensors that nobody asked for."""
    model = build_clip(clip_config(SMALL), open_clip, "x")
    plain = dict(model.state_dict()) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    shown = [picture(64, 64), picture(64, 64, seed=3)]
    scores = [
        looks(build_clip(clip_config(SMALL), given, "x"), Weights(choose_device()), square, False, 1.0)(shown, PROMPTS)["score"]
        for given in (open_clip, plain, {f"model.{name}": value for name, value in open_clip.items()})
    ]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


def test_the_activation_is_the_one_that_a_model_was_trained_with():
    assert {clip_config(shape).vision_config.hidden_act for shape in (clips.LARGE,)} == {"quick_gelu"}
    huge = clip_config(clips.HUGE)
    assert huge.text_config.hidden_act == huge.vision_config.hidden_act == "gelu" and huge.text_config.eos_token_id == 2
    assert (huge.vision_config.num_hidden_layers, huge.vision_config.hidden_size, huge.projection_dim) == (32, 1280, 1024)


def test_other_weights_are_refused(open_clip: dict[str, Tensor]):
    less = {name: value for name, value in open_clip.items() if name != "ln_final.bias"}
    with pytest.raises(SpinliteError, match=r"1 of \d+ tensors, such as text_model.final_layer_norm.bias"):
        build_clip(clip_config(SMALL), less, "file.pt")
    with pytest.raises(SpinliteError, match=r"file\.pt does not hold"):
        build_clip(clip_config(SMALL), open_clip | {"visual.proj": noise(4, 4)}, "file.pt")


def test_embeddings_are_the_same_wrapped_or_plain():
    class Wrapped:
        pooler_output = noise(2, 8)

    assert torch.equal(embedding(Wrapped()), embedding(Wrapped.pooler_output))
    assert embedding(Wrapped()).norm(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("size", [(512, 512), (640, 360), (97, 224), (64, 64), (225, 301)])
def test_pictures_are_seen_as_transformers_processor_sees_them(size: tuple[int, int]):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shown = [picture(*size)]
    wanted: Any = CLIPImageProcessorPil()(images=shown, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(square(shown), wanted, rtol=0, atol=1e-5)


def test_hps_fits_the_long_side_and_pads_with_black():
    flat = Image.new("RGB", (448, 224), (255, 255, 255))
    seen = padded([flat])[0]
    black, white = clips.normalised(torch.zeros(1, 3, 1, 1))[0, :, 0, 0], clips.normalised(torch.ones(1, 3, 1, 1))[0, :, 0, 0]
    assert seen.shape == (3, 224, 224)
    for row, colour in ((0, black), (55, black), (57, white), (166, white), (168, black), (223, black)):
        torch.testing.assert_close(seen[:, row, 100], colour, rtol=0, atol=1e-4)
    same = padded([picture(224, 224)])
    torch.testing.assert_close(same, square([picture(224, 224)]), rtol=0, atol=1e-6)  # nothing to resize


def test_hps_resizes_with_antialias():
    lines = Image.new("L", (896, 896))
    lines.putdata([255 * (x % 2) for _ in range(896) for x in range(896)])
    seen = padded([lines.convert("RGB")])[0, :, 20:-20, 20:-20]
    grey = clips.normalised(torch.full((1, 3, 1, 1), 0.5))[0]
    assert (seen - grey).abs().max() < 0.05  # without it, stripes would be left


def test_prompts_are_cut_at_77_tokens_and_open_clip_reads_html():
    long = tokens(["cat " * 200])["input_ids"]
    assert long.shape == (1, 77) and long[0, -1] == long.max()
    assert torch.equal(tokens(["a &amp;amp; b"], clean=True)["input_ids"], tokens(["a & b"])["input_ids"])
    assert not torch.equal(tokens(["a &amp; b"])["input_ids"], tokens(["a & b"])["input_ids"])


def test_a_network_reads_the_users_own_file(open_clip: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file(open_clip, tmp_path / "own.safetensors")
    network = clips.clip_network("hps_v2.1", SMALL, [], padded, clean=True)
    seen = network.load(Weights(choose_device(), {"hps_v2.1": tmp_path / "own.safetensors"}))([picture(64, 64)], ["a cat"])
    assert seen["score"].shape == (1,) and seen["embedding"].shape == (1, PROJECTION)
    with pytest.raises(SpinliteError, match=r"gone.safetensors, the weights for hps_v2.1, is not there"):
        network.load(Weights(choose_device(), {"hps_v2.1": tmp_path / "gone.safetensors"}))


def test_every_column_has_a_network_and_its_version_in_its_name():
    assert {column.network for column in COLUMNS.values()} == set(NETWORKS)
    published = set(COLUMNS) - {"kid", "look", "alignment", "spread"}
    assert all(name.rpartition("_")[2][0] in "vlh" for name in published) and len(published) == 10
