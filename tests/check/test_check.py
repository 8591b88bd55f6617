"""`spinlite check`: what it says of a data source, on a screen, as a page and as JSON, and when its exit code is 1."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from spinlite.cli import app as cli

HOSTILE = '<script>alert(1)</script> "quoted" & [red]bold[/red]'


def make(path: Path, number: int, size: tuple[int, int] = (1024, 1024), caption: str | None = "a cat on a mat") -> Path:
    """A picture with structure, that no other is like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (number * 37 % 256, 90, 200 - number % 200))
    ImageDraw.Draw(image).ellipse((number * 13 % 300, number * 29 % 300, 500, 600), fill=(20, number * 53 % 256, 0))
    image.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    """(exit code, what was printed) of `spinlite check`."""
    monkeypatch.setattr("sys.argv", ["spinlite", "check", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out + said.err


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(monkeypatch, capsys, *words)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """12 good pictures of three sizes; one broken, one too small, one bare, one twice, one caption alone, one too long."""
    folder = tmp_path / "mixed"
    for i in range(8):
        make(folder / f"square-{i}.png", i, caption=f"a red house, number {i}")
    for i in range(8, 10):
        make(folder / f"wide-{i}.png", i, (1600, 800))
    make(folder / "thin.png", 10, (1000, 640), "word " * 290)
    make(folder / "tiny.png", 11, (100, 100))
    make(folder / "bare.png", 12, caption=None)
    (folder / "twice.png").write_bytes((folder / "square-0.png").read_bytes())
    (folder / "twice.txt").write_text("a red house, number 0")
    make(folder / "broken.png", 13)
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:20])
    (folder / "alone.txt").write_text("no picture")
    return folder


def test_everything_is_said_on_one_screen(mixed: Path, check: Any):
    code, said = check(mixed, "--set", "data.max_unusable=0.5")
    assert code == 0 and len(said.splitlines()) <= 40, said
    for expected in (
        "15 found", "10 different; 12 from .txt", "1000x640 to 1600x800", "1024x1024 ",
        "headers only", "broken.png: ", "tiny.png: too small",
        "1 without caption, left out: bare.png", "1 captions without a picture, ignored: alone.txt", "house 8",
        "the model reads the first 225 and ignores the rest; longer captions: 1, thin.png", "twice.png", "can start",
    ):  # fmt: skip
        assert expected in said, (expected, said)


HEAVY = ("torch", "transformers", "diffusers", "datasets", "scipy", "pyarrow", "imagehash", "accelerate", "peft")


@pytest.mark.parametrize("more", [[], ["--json"], ["--html", "page.html"]], ids=["screen", "json", "page"])
def test_a_plain_check_loads_nothing_that_takes_long_to_load(mixed: Path, tmp_path: Path, more: list[str]):
    words = ["spinlite", "check", str(mixed), "--set", "data.max_unusable=0.5", *more]
    lines = (
        "import sys", f"sys.argv = {words!r}", "from spinlite.cli.app import main", "try: main()",
        f"except SystemExit: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)",
    )  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stderr.splitlines()[-1] == "[]", ended


def test_json_says_the_same_for_programs(mixed: Path, check: Any):
    code, said = check(mixed, "--json", "--set", "data.max_unusable=0.5")
    found = json.loads(said)
    assert code == 0 and found["trains"] and not found["full"] and found["pictures"] == 15
    assert found["learned"] + found["heldout"] == 11 and found["buckets"]["1024x1024"] == 8
    assert sum(found["buckets"].values()) == 11 and found["words"]["house"] == 8 and "a" not in found["words"]
    assert found["tokens"] == {"limit": 225, "least": 5, "middle": 6, "most": 290, "over": ["thin.png"]}
    assert found["unused"]["without caption, left out"] == ["bare.png"]
    assert [name.partition(":")[0] for name in found["unused"]["that can't be used"]] == ["broken.png", "tiny.png"]
    assert found["unused"]["the same as another picture, left out"] == ["twice.png"]
    pictures = [name for names in found["unused"].values() for name in names if ".png" in name]
    assert 11 + len(pictures) == 15, "every picture is used or named"
    assert found["enlarged"].keys() == {"thin.png"} and 1 < found["enlarged"]["thin.png"] <= 1.5


def test_exit_code_1_where_training_would_stop(mixed: Path, check: Any):
    for name in ("square-1.png", "square-2.png"):
        (mixed / name).write_bytes(b"")
    code, said = check(mixed)
    assert code == 1 and "would stop: 4 of 15 files" in said and "--set data.max_unusable=0.3" in said
    code, said = check(mixed, "--json")
    assert code == 1 and json.loads(said)["problem"].startswith("4 of 15 files") and not json.loads(said)["trains"]


def test_a_source_that_is_not_there_is_one_clear_error(check: Any):
    code, said = check("nowhere")
    assert code == 1 and "there is no folder, file or preset nowhere" in said and "Traceback" not in said


def test_an_empty_folder_stops_training_and_the_rest_is_still_said(tmp_path: Path, check: Any):
    (tmp_path / "empty").mkdir()
    code, said = check("empty", "--html", "page.html")
    assert code == 1 and "0 found" in said and (tmp_path / "page.html").is_file()


def test_look_alikes_are_found_where_pictures_are_decoded(tmp_path: Path, check: Any):
    for i in range(3):
        make(tmp_path / "some" / f"{i}.png", i)
    Image.open(tmp_path / "some" / "0.png").resize((900, 900)).save(tmp_path / "some" / "again.jpg")
    (tmp_path / "some" / "again.txt").write_text("again")
    assert "much like" not in check("some")[1]
    code, said = check("some", "--full", "--html", "page.html")
    assert code == 0 and "1 nearly the same as another picture, used all the same: again.jpg (like 0.png)" in said


def test_what_is_cut_and_enlarged_is_named_with_the_worst(tmp_path: Path, check: Any):
    make(tmp_path / "some" / "a.png", 1)
    make(tmp_path / "some" / "wide.png", 2, (2048, 300))
    make(tmp_path / "some" / "small.png", 3, (700, 700))
    found = json.loads(check("some", "--json", "--set", "data.buckets=false", "--set", "data.max_unusable=1")[1])
    assert found["cut"] == {} and found["unused"]["that can't be used"][0].startswith("wide.png: too small")
    assert found["enlarged"] == {"small.png": pytest.approx(1024 / 700)}


def test_a_preset_brings_its_rules_and_its_models_shapes(tmp_path: Path, check: Any):
    for i in range(4):
        make(tmp_path / "some" / f"{i}.png", i, (512, 512), caption=None)
    (tmp_path / "mine.toml").write_text('extends = "sd15-12gb"\n[data]\nuncaptioned = "name"\nfolder = "some"\n')
    for words in (("mine.toml",), ("some", "--preset", "mine.toml")):
        found = json.loads(check(*words, "--json")[1])
        assert found["buckets"] == {"512x512": 4} and found["origins"] == {"file name": 4} and not found["unused"]


def test_the_demo_can_start(check: Any):
    code, said = check("demo")
    assert code == 0 and "160 found; 140 to learn from, 20 for validation" in said and "the model reads the first 90" in said


def test_pairs_are_seen_by_their_folders(tmp_path: Path, check: Any):
    for i in range(3):
        make(tmp_path / "some" / "win" / f"{i}.png", i, caption=f"caption {i}")
        make(tmp_path / "some" / "lose" / f"{i}.png", i + 50, caption=None)
    make(tmp_path / "some" / "lose" / "alone.png", 99, caption=None)
    code, said = check("some")
    assert code == 0 and "3 found" in said
    assert "1 in lose/ without a picture of the same name in win/, ignored: alone.png" in said


class Tags(HTMLParser):
    """Which elements a page has, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or (value or "").startswith("javascript") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_users_wrote_is_shown_as_it_is_and_never_as_markup(tmp_path: Path, check: Any):
    folder = tmp_path / "[red]<u>set"
    make(folder / "[red]<script>x&.png", 1, caption=HOSTILE)
    make(folder / "[bold]plain.png", 2, caption='"><img src=x onerror=alert(1)> {{ 7 * 7 }}')
    (folder / "[blink]<s>broken.png").write_bytes(b"no picture")
    (folder / "<u>alone\x1b[2J.txt").write_text("x")
    code, said = check(folder, "--html", "page.html", "--set", "data.max_unusable=0.5")
    assert code == 0 and "\x1b[2J" not in said
    for text in ("[blink]<s>broken.png: not a picture", "<u>alone\\x1b[2J.txt", "[red]<u>set"):
        assert text in said
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Tags(html)
    assert not {"script", "u", "s"} & set(page.tags)
    for text in (HOSTILE, '"><img src=x onerror=alert(1)> {{ 7 * 7 }}', "[blink]<s>broken.png: not a picture", "[red]<u>set"):
        assert text in page.text
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r"<img[^>]*src=.([^\"']*)", html))


def test_the_page_shows_problems_first_with_thumbnails(mixed: Path, tmp_path: Path, check: Any):
    check(mixed, "--html", "out/page.html", "--set", "data.max_unusable=0.5")
    page = Tags((tmp_path / "out" / "page.html").read_text(encoding="utf-8"))
    parts = ("Training can start", "What to look at", "tiny.png: too small", "All figures")
    order = [page.text.index(part) for part in parts]
    assert order == sorted(order) and page.tags.count("img") >= 12 and "1024x1024" in page.text
