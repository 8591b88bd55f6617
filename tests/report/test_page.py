"""The page about runs: whole, safe to open, and read from the run folder alone."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from spinlite.config.prompts import Prompt
from spinlite.config.rounds import learning_rate
from spinlite.config.settings import Settings
from spinlite.report.chart import chart
from spinlite.report.curves import POINTS, Curve, thin
from spinlite.report.page import write_report
from spinlite.report.pictures import Row, columns, pairs, read_rows
from spinlite.report.story import read_story
from spinlite.runs.run import Run
from spinlite.runs.votes import vote
from spinlite.selfplay import train
from spinlite.training.cells import write_cells
from tests.conftest import Command
from tests.toy import Quiet, changed

SHEET = r'data:image/jpeg;base64,([^"]+)" alt="(?:Unseen captions|Samples after)'


@pytest.fixture
def run(tmp_path: Path, small: Settings) -> Path:
    folder = tmp_path / "runs" / "toy"
    train(changed(small, run__rounds=2), folder, Quiet())
    return folder


def test_it_shows_the_sheets_the_rounds_and_the_files(run: Path, command: Command):
    assert command("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    story = read_story(run)
    assert story.state == "done: 2 rounds" and story.state in page
    for event in story.rounds:
        assert f"{event['policy_real']:.4f}" in page
    pictures = re.findall(SHEET, page)
    assert [k for k, _ in story.sheets] == [2, 1] and len(pictures) == 2
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).format == "JPEG"
    assert "toy.safetensors" in page
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)


def test_the_journal_is_a_table_for_spreadsheets(run: Path, command: Command):
    opened = Run.open_existing(run)
    opened.log("said", text='=cmd|x, "é"', error=-1.5, list=[1, 2])
    opened.save({}, **opened.state)
    assert command("report", run, "--csv", "table.csv").code == 0
    with Path("table.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert list(rows[0])[:4] == ["event", "time", "round", "update"]
    updates = [row for row in rows if row["event"] == "update"]
    assert [float(row["margin"]) for row in updates] == [
        event["margin"] for event in map(json.loads, (run / "journal.jsonl").read_text(encoding="utf-8").splitlines())
        if event["event"] == "update"
    ]  # fmt: skip
    assert [rows[-1][key] for key in ("text", "error", "list", "margin")] == ['\'=cmd|x, "é"', "-1.5", "[1, 2]", ""]
    assert "one run" in command("report", run, run, "--csv", "x.csv").error()[0]


def test_two_pictures_of_a_caption_can_be_chosen_from_and_votes_are_told(run: Path):
    vote(run, "red", 1, "round", run / "samples" / "round-0" / "heldout-01.png", run / "samples" / "round-1" / "heldout-01.png")
    story = read_story(run)
    whose = [tuple(who for who, _ in both) for _, both in story.pairs]
    assert 0 < len(whose) <= 12 and all({*each} == {"start", "round"} for each in whose)
    assert story.pairs == read_story(run).pairs and story.shown == story.best
    for _, both in story.pairs:
        files = dict(both)
        assert files["start"].parent.name == "round-0" and files["round"].parent.name == f"round-{story.shown}"
    write_report([run], run / "page.html")
    page = (run / "page.html").read_text(encoding="utf-8")
    assert [page.count(f'class="{who}"') for who in ("start", "round")] == [len(whose)] * 2
    assert "you preferred round 1 to the base in 1 of 1" in page and ".png" not in page


def test_of_many_sheets_the_last_ones_and_the_first_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch):
    write_report([run], run / "all.html")
    monkeypatch.setattr("spinlite.report.story.SHEETS", 0)
    write_report([run], run / "some.html")
    assert [k for k, _ in read_story(run).sheets] == [1]
    said = ["The sheets of other rounds" in (run / f"{name}.html").read_text(encoding="utf-8") for name in ("all", "some")]
    assert said == [False, True]


def test_curves_hold_the_journals_figures(run: Path):
    story = read_story(run)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    error = next(curve for curve in story.curves if curve.title == "Error on unseen pictures")
    judged = [event for event in events if event["event"] == "judge"]
    assert error.points == [(event["round"], event["policy_real"]) for event in judged]
    assert error.base == judged[0]["base_real"]
    margin = next(curve for curve in story.curves if curve.title == "Margin")
    updates = [event for event in events if event["event"] == "update"]
    assert margin.points == [(e["round"] - 1 + e["update"] / 4, e["margin"]) for e in updates]


def test_runs_are_compared_by_the_settings_that_differ(run: Path, small: Settings, tmp_path: Path, command: Command):
    other = run.with_name("other")
    train(changed(small, run__rounds=1, learn__lr=1e-4), other, Quiet())
    assert "add: -o" in command("report", run, other).error()[1]
    assert command("report", run, other, "-o", tmp_path / "both.html").code == 0
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    table = page.split("Settings that differ")[1].split("</table>")[0]
    assert "learn.lr" in table and "run.rounds" in table and "learn.batch" not in table
    figures = page.split("2 runs compared")[1].split("</table>")[0]
    for folder in (run, other):
        story = read_story(folder)
        best = next(event for event in story.rounds if event["round"] == story.best)
        assert f"{best['policy_real']:.4f}" in figures and story.state in figures
    same = page.split("Unseen captions, by the last round of each run")[1].split("</table>")[0]
    captions = {row.prompt.text for row in read_story(run).captions}
    assert same.count("data:image/jpeg") == 2 * len(captions) and all(caption in same for caption in captions)


def test_what_a_user_wrote_is_no_markup(small: Settings, tmp_path: Path):
    folder = tmp_path / "<b>&run"
    settings = changed(small, run__rounds=1).model_copy(update={"about": "<script>alert(1)</script>\x1b[31m"})
    train(settings, folder, Quiet())
    write_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page.split("<body>")[1].split("<h2>")[0] and "&lt;b&gt;&amp;run" in page
    assert "<script" not in page and "\x1b" not in page


def test_prompts_of_ones_own_are_shown_round_by_round(small: Settings, tmp_path: Path):
    folder = tmp_path / "r"
    train(changed(small, run__rounds=2, judge__prompts=["red <i>", "plain --n </td> --d 3"]), folder, Quiet())
    write_report([folder], tmp_path / "page.html")
    table = (tmp_path / "page.html").read_text(encoding="utf-8").split("<h2>Your prompts</h2>")[1].split("</table>")[0]
    assert table.count("data:image/jpeg") == 2 * 3 and "at the start" in table and "round 2" in table
    assert "red &lt;i&gt;" in table and "without: &lt;/td&gt;, seed 3, 8x8, 4 steps, CFG 1.5" in table
    (folder / "samples" / "round-1" / "prompt-01.png").write_bytes(b"")
    write_report([folder], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count('alt="red &lt;i&gt;"') == 2


def test_pictures_of_one_caption_stay_apart_and_pairs_are_alike_in_noise(tmp_path: Path):
    for k in range(3):
        drawn = [(Prompt(text="a cat"), "", Image.new("RGB", (8, 8), (i, k, 0))) for i in range(3 - k)]
        write_cells(tmp_path / str(k), "heldout", drawn)
    rows = read_rows([tmp_path / str(k) for k in range(3)], "heldout")
    assert [{k: path.name for k, path in row.files.items()} for row in rows] == [
        {2: "heldout-01.png", 1: "heldout-01.png", 0: "heldout-01.png"},
        {1: "heldout-02.png", 0: "heldout-02.png"},
        {0: "heldout-03.png"},
    ]
    assert [pair.picture for pair in pairs(rows, 1)] == [tmp_path / "1" / f"heldout-0{i}.png" for i in (1, 2)]


def test_long_runs_show_the_first_the_last_and_some_rounds_between():
    rows = [Row(Prompt(text="x"), {k: Path(f"{k}.png") for k in range(30)})]
    assert columns(rows) == [0, 4, 9, 14, 19, 24, 29] and columns([Row(Prompt(text="x"), {2: Path()})]) == [2]


def test_a_broken_sheet_does_not_spoil_the_page(run: Path, tmp_path: Path):
    (run / "samples" / "round-2.png").write_bytes(b"")
    write_report([run], tmp_path / "page.html")
    assert len(re.findall(SHEET, (tmp_path / "page.html").read_text(encoding="utf-8"))) == 1


def test_thin_keeps_means():
    points = [(float(i), float(i % 2)) for i in range(100_000)]
    thinned = thin(points)
    assert POINTS / 2 < len(thinned) <= POINTS
    assert all(y == pytest.approx(0.5, abs=0.01) for _, y in thinned)
    assert thin(points[:3]) == points[:3]


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3e-9, 2e-9], [1e6, 2e6, -5e5], [0.0721, 0.0689]])
def test_a_chart_draws_every_point_inside_its_frame(values: list[float]):
    curve = Curve("t", "", [(float(i + 1), y) for i, y in enumerate(values)], 0.5)
    drawn = re.search(r'<polyline points="([^"]*)"', chart("<t>", [(curve.points, curve.base)]))
    assert drawn
    places = [tuple(map(float, pair.split(","))) for pair in drawn[1].split()]
    assert len(places) == len(values)
    assert all(0 <= x <= 460 and 0 <= y <= 200 for x, y in places)
    assert "&lt;t&gt;" in chart("<t>", [(curve.points, None)])


def test_the_learning_rate_is_drawn_as_it_was(run: Path):
    rate = next(curve for curve in read_story(run).curves if curve.title == "Learning rate")
    learn = read_story(run).settings.learn
    assert [y for _, y in rate.points] == pytest.approx([learning_rate(learn, update) for _ in (1, 2) for update in range(4)])
