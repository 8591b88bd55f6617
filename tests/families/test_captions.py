"""How captions are read: in chunks of 75 tokens, at the layer of CLIP that is asked for, with nothing taken for a command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from spinlite.config.settings import Model, Settings
from spinlite.data.encoded import Encoded
from spinlite.data.records import Record, Survey
from spinlite.errors import SpinliteError
from spinlite.families.chunks import count_chunks, tokenize
from spinlite.families.clip import build_tokenizer
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.families.syntax import find_syntax
from spinlite.memory import device
from spinlite.runs.files import fingerprint_files
from spinlite.summary import warnings

CPU = device.Device(torch.device("cpu"), "a test")
SHORT, FULL = "a red cat", ", ".join(["red"] * 37) + " cat"  # 3 and 74 tokens
LONG = ", ".join(["cat"] * 60) + ", a dog"  # 122 tokens
START, END = 49406, 49407


def load(base: Path, **settings: Any) -> Family:
    return load_family(Model(base=str(base), **settings), CPU)


def expected_ids(tokenizer: CLIPTokenizer, text: str, chunks: int) -> list[list[int]]:
    """sd-scripts' way: one long row of ids, cut into thirds, of which each begins with START and ends with END or padding."""
    inner, padding, width = 75, tokenizer.pad_token_id, chunks * 75 + 2
    row = tokenizer(text, padding="max_length", truncation=True, max_length=width).input_ids
    rows = []
    for i in range(1, width - 77 + 2, inner):
        chunk = [row[0], *row[i : i + inner], row[-1]]
        if padding != END:
            if chunk[-2] not in (END, padding):
                chunk[-1] = END
            if chunk[1] == padding:
                chunk[1] = END
        rows.append(chunk)
    return rows


@pytest.mark.parametrize("padding", [None, "!"])
@pytest.mark.parametrize("text", ["", SHORT, FULL, FULL + " sat", FULL + " sat down", LONG, LONG * 3, "wow! " * 100])
def test_captions_are_cut_into_chunks_as_sd_scripts_cuts_them(padding: str | None, text: str):
    tokenizer = build_tokenizer()
    if padding:
        tokenizer.pad_token = padding
    for chunks in (1, 2, 3):
        if padding == "!" and "!" in text and chunks > 1:
            continue  # sd-scripts takes a caption's own "!" for padding there
        assert tokenize(tokenizer, [text], chunks)[0].tolist() == expected_ids(tokenizer, text, chunks)
    plain = tokenizer([text, SHORT], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tokenize(tokenizer, [text, SHORT])[:, 0], plain)


@pytest.mark.parametrize(
    ("captions", "most", "chunks"),
    [
        ([], 3, 1), ([""], 3, 1), ([FULL + " sat"], 3, 1), ([FULL + " sat down"], 3, 2), ([SHORT, LONG], 3, 2),
        ([LONG * 2], 3, 3), ([LONG * 9], 3, 3), ([LONG * 9], 1, 1),
    ],
)  # fmt: skip
def test_the_longest_caption_says_how_many_chunks_there_are(captions: list[str], most: int, chunks: int):
    assert count_chunks(build_tokenizer(), captions, most) == chunks


def read_apart(base: Path, text: str, chunks: int, number: str = "", kind: Any = CLIPTextModel) -> list[Any]:
    """What transformers' own text encoder says of each chunk of a caption."""
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder=f"tokenizer{number}")
    encoder = kind.from_pretrained(base, subfolder=f"text_encoder{number}")
    with torch.no_grad():
        return [
            encoder(torch.tensor([ids]), output_hidden_states=True) for ids in expected_ids(tokenizer, text, chunks)
        ]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [("sd15", LONG), ("sd15", ""), ("sd21", LONG), ("sd21", SHORT)])
def test_a_long_caption_is_its_chunks_side_by_side(kind: str, text: str, tiny_bases: Path):
    made = load(tiny_bases / kind)
    for chunks in (1, 2, 3):
        whole = torch.cat([said.last_hidden_state for said in read_apart(tiny_bases / kind, text, chunks)], 1)
        found = made.encode_captions([text, "another"], chunks)["prompt"]
        assert found.shape == (2, 77 * chunks, whole.shape[-1])
        torch.testing.assert_close(found[:1], whole)


def test_sdxls_pooled_embedding_is_of_the_first_chunk(tiny_bases: Path):
    base = tiny_bases / "sdxl"
    found = load(base).encode_captions([SHORT, LONG], 2)
    first = read_apart(base, LONG, 2)
    second = read_apart(base, LONG, 2, "_2", CLIPTextModelWithProjection)
    whole = torch.cat(
        [torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1) for a, b in zip(first, second, strict=True)], 1
    )
    torch.testing.assert_close(found["prompt"][1:], whole)
    torch.testing.assert_close(found["pooled"][1:], second[0].text_embeds)
    assert not torch.allclose(found["pooled"][1:], second[1].text_embeds)


def layer_of(base: Path, kind: str, skip: int) -> Tensor:
    said = read_apart(base, SHORT, 1)[0]
    if kind == "sdxl":
        return said.hidden_states[-skip]
    stored = skip - (kind == "sd21")  # SD 2.x's last layer is not stored
    norm = CLIPTextModel.from_pretrained(base, subfolder="text_encoder").final_layer_norm
    with torch.no_grad():
        return norm(said.hidden_states[-stored])


@pytest.mark.parametrize(("kind", "own", "other"), [("sd15", 1, 2), ("sd21", 2, 3), ("sdxl", 2, 1)])
def test_clip_skip_counts_layers_from_the_end(kind: str, own: int, other: int, tiny_bases: Path):
    base = tiny_bases / kind
    plain, same, skipped = load(base), load(base, clip_skip=own), load(base, clip_skip=other)
    for made, skip in ((plain, own), (same, own), (skipped, other)):
        expected = layer_of(base, kind, skip)
        torch.testing.assert_close(made.encode_captions([SHORT])["prompt"][..., : expected.shape[-1]], expected)
    assert plain.caption_hash == same.caption_hash and plain.base_hash == same.base_hash
    assert plain.caption_hash != skipped.caption_hash and plain.base_hash != skipped.base_hash
    assert skipped.export_metadata()["ss_clip_skip"] == str(other)


@pytest.mark.parametrize(("kind", "skip"), [("sd15", 3), ("sd21", 1), ("sd21", 4), ("sdxl", 12)])
def test_a_layer_that_is_not_there_is_refused(kind: str, skip: int, tiny_bases: Path):
    with pytest.raises(SpinliteError, match=rf"no layer for model.clip_skip = {skip}.*\nfix: set model.clip_skip = [12],"):
        load(tiny_bases / kind, clip_skip=skip)


def test_a_changed_width_is_encoded_under_its_own_name_and_nothing_else_again(tiny_bases: Path, tmp_path: Path):
    made = load(tiny_bases / "sd15")
    records = []
    for i, caption in enumerate([SHORT, FULL, LONG]):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(path := tmp_path / f"{i}.png")
        records.append(Record(path, caption, fingerprint_files([path])))
    told: list[list[tuple[int, int]]] = []

    def encode(some: list[Record]) -> Encoded:
        told.append([])
        return Encoded(made, some, tmp_path / "cache", 4, lambda done, of: told[-1].append((done, of)))

    narrow, wide = encode(records[:2]), encode(records)
    assert (narrow.chunks, wide.chunks) == (1, 2)
    assert narrow.cond(records[:2])["prompt"].shape[1] == 77 and wide.cond(records)["prompt"].shape[1] == 154
    assert [rows[-1][1] for rows in told] == [
        2 + 3,
        1 + 4,
    ]  # pictures and captions: the new picture, all captions at the new width
    assert torch.equal(encode(records[:2]).cond(records[:2])["prompt"], narrow.cond(records[:2])["prompt"]) and not told[-1]
    assert Encoded(load(tiny_bases / "sd15", max_tokens=75), records, tmp_path / "cache", 4, lambda *_: None).chunks == 1


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a (red:1.2) cat", {"prompt weights": ["(red:1.2)"]}),
        ("((best quality)), (smile, closed eyes: .5)", {"prompt weights": ["(smile, closed eyes: .5)"]}),
        (r"hatsune miku \(vocaloid\), (lens flare)", {}),
        (r"a \(red:1.2\) cat, (:3), :d, ^_^, @_@", {}),
        ("__hair/colour__ girl", {"wildcards": ["__hair/colour__"]}),
        ("a {red|blue} cat", {"wildcards": ["{red|blue}"]}),
        ("{best quality}, long_hair, _ _", {}),
    ],
)
def test_what_a_webui_would_read_as_a_command_is_found(caption: str, found: dict[str, list[str]]):
    assert find_syntax([caption]) == found


def test_a_run_says_once_what_it_takes_literally():
    captions = ["a (red:1.2) cat", "a (red:1.2) cat", "a (blue:0.8) cat", "__hair__"]
    records = [Record(Path(f"{i}.png"), caption, str(i)) for i, caption in enumerate(captions)]
    survey = Survey(train=records[:3], heldout=records[3:])
    assert [line for line in warnings(survey, Settings()) if "plain text" in line] == [
        "2 captions hold prompt weights such as (red:1.2): they are learned as plain text",
        "1 caption holds wildcards such as __hair__: they are learned as plain text",
    ]
