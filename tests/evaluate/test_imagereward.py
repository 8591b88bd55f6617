"""ImageReward on small random weights, against BLIP's formulas written out, in the layout of the published file."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.evaluate.imagereward import MEAN, STD, build, configs, word_pieces
from tests.evaluate.test_clips import noise

LAYERS, WIDTH, HEADS = (2, 2), (32, 24), (4, 3)
SIZES = configs(LAYERS, WIDTH, HEADS)
HEAD = [(0, WIDTH[1], 16), (2, 16, 8), (4, 8, 6), (6, 6, 4), (7, 4, 1)]  # layers.N, in, out: dropouts stand between


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A random model in the published file's layout, with tensors in it that scores don't need."""
    wide, narrow = WIDTH
    linear: dict[str, tuple[int, int]] = {f"mlp.layers.{i}.": (out, into) for i, into, out in HEAD}
    norms = {"blip.visual_encoder.norm.": wide, "blip.text_encoder.embeddings.LayerNorm.": narrow}
    for i in range(LAYERS[0]):
        block = f"blip.visual_encoder.blocks.{i}."
        linear |= {f"{block}attn.qkv.": (3 * wide, wide), f"{block}attn.proj.": (wide, wide)}
        linear |= {f"{block}mlp.fc1.": (4 * wide, wide), f"{block}mlp.fc2.": (wide, 4 * wide)}
        norms |= {f"{block}norm1.": wide, f"{block}norm2.": wide}
    for i in range(LAYERS[1]):
        layer = f"blip.text_encoder.encoder.layer.{i}."
        for kind, width in (("attention", narrow), ("crossattention", wide)):
            linear |= {f"{layer}{kind}.self.{name}.": (narrow, width) for name in ("key", "value")}
            linear |= {f"{layer}{kind}.self.query.": (narrow, narrow), f"{layer}{kind}.output.dense.": (narrow, narrow)}
            norms[f"{layer}{kind}.output.LayerNorm."] = narrow
        linear |= {f"{layer}intermediate.dense.": (4 * narrow, narrow), f"{layer}output.dense.": (narrow, 4 * narrow)}
        norms[f"{layer}output.LayerNorm."] = narrow
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, wide), "blip.visual_encoder.pos_embed": (1, 197, wide),
        "blip.visual_encoder.patch_embed.proj.weight": (wide, 3, 16, 16), "blip.visual_encoder.patch_embed.proj.bias": (wide,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (30524, narrow), "blip.text_proj.weight": (8, narrow),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, narrow),
    }  # fmt: skip
    for name, shape in linear.items():
        shapes |= {f"{name}weight": shape, f"{name}bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}weight": (width,), f"{name}bias": (width,)}
    found = {name: 0.3 * noise(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return found | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def reference(weights: Mapping[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """BLIP's ViT, BERT that looks at it in every layer, and the head, one layer after the other."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    patch = F.conv2d(pixels, weights[f"{eye}.patch_embed.proj.weight"], weights[f"{eye}.patch_embed.proj.bias"], stride=16)
    x = torch.cat([weights[f"{eye}.cls_token"].expand(len(pixels), -1, -1), patch.flatten(2).transpose(1, 2)], 1)
    x = x + weights[f"{eye}.pos_embed"]
    for i in range(LAYERS[0]):
        block = f"{eye}.blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attention(q, k, v, HEADS[0]), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    shown = norm(x, f"{eye}.norm", 1e-6)
    y = weights[f"{text}.embeddings.word_embeddings.weight"][ids]
    y = norm(
        y + weights[f"{text}.embeddings.position_embeddings.weight"][: ids.shape[1]], f"{text}.embeddings.LayerNorm", 1e-12
    )
    padding = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
    for i in range(LAYERS[1]):
        for kind, source, hidden in (("attention", y, padding), ("crossattention", shown, None)):
            name = f"{text}.encoder.layer.{i}.{kind}"
            source = y if kind == "attention" else source
            q, k, v = (linear(z, f"{name}.self.{part}") for z, part in ((y, "query"), (source, "key"), (source, "value")))
            y = norm(
                y + linear(attention(q, k, v, HEADS[1], hidden), f"{name}.output.dense"), f"{name}.output.LayerNorm", 1e-12
            )
        name = f"{text}.encoder.layer.{i}"
        z = linear(F.gelu(linear(y, f"{name}.intermediate.dense")), f"{name}.output.dense")
        y = norm(y + z, f"{name}.output.LayerNorm", 1e-12)
    score = y[:, 0]
    for i, *_ in HEAD:
        score = linear(score, f"mlp.layers.{i}")
    return (score[:, 0] - MEAN) / STD


def test_scores_are_those_of_the_reference(published: dict[str, Tensor]):
    pixels, ids = noise(2, 3, 224, 224), torch.randint(0, 30524, (2, 35), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 35, dtype=torch.long)
    mask[0, 9:] = 0
    model = build(published, "x", SIZES)
    found = model(pixels, {"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(found, reference(published, pixels, ids, mask), rtol=1e-4, atol=1e-4)
    other = model(pixels.flip(0), {"input_ids": ids, "attention_mask": mask})
    assert (other - found).abs().min() > 1e-3  # it looks at the picture


def test_the_sizes_are_those_of_blip_l_and_not_transformers_defaults():
    picture, text = configs()
    assert (picture.hidden_size, picture.num_hidden_layers, picture.num_attention_heads) == (1024, 24, 16)
    assert picture.layer_norm_eps == 1e-6 and picture.image_size == 224 and picture.patch_size == 16
    assert text.num_attention_heads == 12 and text.encoder_hidden_size == 1024 and text.vocab_size == 30524


def test_prompts_are_padded_and_cut_to_35_word_pieces(tmp_path: Path):
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    words = word_pieces(["a cats", "cat " * 50], BertTokenizer(str(tmp_path / "vocab.txt")))
    assert words["input_ids"].shape == (2, 35)
    assert words["input_ids"][0, :6].tolist() == [2, 5, 6, 7, 3, 0] and words["attention_mask"][0].sum() == 5
    assert words["input_ids"][1].tolist() == [2, *[6] * 33, 3]


def test_a_file_that_lacks_a_part_is_refused(published: dict[str, Tensor]):
    less = {name: value for name, value in published.items() if "crossattention.self.key" not in name}
    with pytest.raises(SpinliteError, match=r"file\.pt does not hold this scorer's weights: 4 of"):
        build(less, "file.pt", SIZES)
