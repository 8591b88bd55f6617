"""What an evaluation leaves: results by prompt, a page without markup of strangers, and published rows beside ours."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from spinlite.config.settings import Play
from spinlite.evaluate.compare import figures
from spinlite.evaluate.drawing import Drawn, describe_sampling
from spinlite.evaluate.evaluate import Evaluation, Row
from spinlite.evaluate.page import render, write
from spinlite.evaluate.prompts import SETS, Prompts, as_records
from spinlite.evaluate.published import beside, groups
from spinlite.evaluate.registry import COLUMNS
from spinlite.evaluate.scorer import Column

HOSTILE = '<script>alert(1)</script> & "cat" \x1b[31m'
TEXTS = [HOSTILE, *(f"prompt {i}" for i in range(1, 24))]
GOOD = Play(sampler="ddpm", steps=50, guidance=7.5)


def evaluation(
    folder: Path, columns: list[Column], prompts: str = "mine", sampling: Play = GOOD, limited: bool = False
) -> Evaluation:
    """A model whose pictures score 1 more than the base's for even prompts, and their number less for odd ones."""
    scores: dict[str, Tensor] = {
        "base": torch.zeros(24, 2),
        "mine-1": torch.tensor([[1.0, 1] if i % 2 == 0 else [-i, -i] for i in range(24)]),
    }
    rows = []
    for name, each in scores.items():
        files = [[folder / f"{name}-{i}-{seed}.png" for i in range(24)] for seed in range(2)]
        for path in (path for row in files for path in row):
            Image.new("RGB", (8, 8), "red").save(path)
        given = {c.name: torch.eye(24) if c.of == "set" else each for c in columns}
        mine, first = (
            {c.name: c.per_prompt(some[c.name]) for c in columns} for some in (given, rows[0].scores if rows else given)
        )
        drawn = Drawn(name, describe_sampling(sampling), False, files)
        rows.append(Row(drawn, given, figures(columns, mine, first if rows else None)))
    set_ = Prompts(prompts, as_records(TEXTS), False, limited)
    return Evaluation(set_, columns, rows, None, 2, "toy (points)", [sampling], folder)


def test_the_page_shows_the_prompts_that_gained_and_lost_most_and_no_markup_of_theirs(tmp_path: Path):
    found = evaluation(tmp_path, [COLUMNS["kid"], COLUMNS["hps_v2.1"]])
    page = render(found, compare=False)
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    gained, lost = page.split("Lost most")
    changes = [float(change) for change in re.findall(r"<figcaption>([+-][\d.]+) ·", lost)]
    assert changes == [-23, -21, -19, -17, -15, -13, -11, -9, -7, -5] and gained.count("+1.00 ·") == 10
    assert page.count("data:image/jpeg") == 2 * 20 and "by hps_v2.1" in page


def test_results_hold_every_score_and_where_its_picture_is(tmp_path: Path):
    results, page = write(evaluation(tmp_path, [COLUMNS["kid"], COLUMNS["hps_v2.1"]]), tmp_path, compare=True)
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 48 and lines[0]["text"] == HOSTILE and page.exists()
    last = lines[-1]
    assert last["model"] == "mine-1" and last["prompt"] == 23 and last["scores"] == {"hps_v2.1": [-23, -23]}
    assert [(tmp_path / file).exists() for file in last["files"]] == [True, True]


def test_published_rows_have_columns_and_prompts_that_exist():
    for group in groups():
        assert group.prompts in SETS and all(row.keys() <= COLUMNS.keys() for row in group.rows.values())
        assert group.sampling.keys() <= {"sampler", "steps", "guidance", "seeds"}
    spin = next(group for group in groups() if group.prompts == "pickapic-v2-test").rows["SPIN-Diffusion"]
    assert spin == {"pickscore_v1": 21.4, "hps_v2.0": 27.78, "aes_v1": 6.26, "clip_h14": 33.05, "imagereward_v1": 0.5619}


@pytest.mark.parametrize(
    ("prompts", "limited", "sampling", "words"),
    [
        ("pickapic-v2-test", False, GOOD, ["pictures a prompt: 5, here 2"]),
        ("pickapic-v2-test", True, GOOD, ["prompts: all of pickapic-v2-test, here 24 of them"]),
        ("pickapic-v2-test", False, Play(sampler="ddim", steps=30), ["sampler: ddpm, here ddim", "steps: 50", "guidance: 7.5"]),
        ("mine", False, GOOD, ["prompts: pickapic-v2-test, here 24 of mine"]),
    ],
)
def test_what_differs_from_a_published_protocol_is_said(
    prompts: str, limited: bool, sampling: Play, words: list[str], tmp_path: Path
):
    found = evaluation(tmp_path, [COLUMNS["hps_v2.0"], COLUMNS["hps_v2.1"], COLUMNS["aes_v1"]], prompts, sampling, limited)
    one = next(b for b in beside(found) if b.group.prompts == "pickapic-v2-test")
    said = "; ".join(one.differs)
    assert all(word in said for word in [*words, "base: SD 1.5, here toy", "antialias"])
    assert list(one.columns) == ["hps_v2.0", "aes_v1"] and one.lines[0] == ("SD 1.5", ["26.88", "5.93"])
    assert one.lines[-1][0] == "> mine-1" and len(one.lines[-1][1]) == 2
    if prompts != "mine":
        assert {b.group.prompts for b in beside(found)} == {prompts}
    if not limited:
        assert "here 24 of them" not in said


def test_columns_that_no_paper_has_have_nothing_beside_them(tmp_path: Path):
    assert not list(beside(evaluation(tmp_path, [COLUMNS["kid"], COLUMNS["look"]])))
