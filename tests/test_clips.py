"""A run on clips from beginning to end, with pictures among them, and what it leaves to look at."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from spinlite.config.load import load_settings
from spinlite.config.settings import Play
from spinlite.runs.journal import Journal
from spinlite.selfplay import Outcome, train
from spinlite.training.fakes import compare_with_real
from spinlite.training.guards import Diverged
from spinlite.training.session import Session
from tests.clips import ball, captioned
from tests.conftest import Command
from tests.toy import TOY, Quiet

COLOURS = ("red", "white", "green", "pink", "yellow", "cyan")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips and two pictures."""
    folder = tmp_path_factory.mktemp("clips")
    for n in range(12):
        captioned(folder / f"{n}.webp", ball(9, 1 + n % 2, colour=COLOURS[n // 2]), f"{COLOURS[n // 2]} ball {n}")
    for n in range(2):
        ball(1, colour=COLOURS[n])[0].save(folder / f"still{n}.png")
        (folder / f"still{n}.txt").write_text(f"a {COLOURS[n]} still", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Quiet]:
    options = ["model.base=clips-0", "learn.updates=4", "play.start=0.5"]
    watch = Quiet()
    return train(load_settings(TOY, options, data__folder=str(data)), tmp_path_factory.mktemp("run") / "clips", watch), watch


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    journal = Journal(folder / "journal.jsonl")
    journal.read()
    return [event for event in journal.every() if event["event"] == kind]


def seconds(path: Path) -> float:
    """How long an animation plays, again and again. Frames in a row that are alike are one frame in the file."""
    total = 0
    with Image.open(path) as played:
        assert played.info["loop"] == 0
        for n in range(played.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            played.seek(n)
            played.load()
            total += played.info["duration"]
    return total / 1000


def test_clips_train_two_rounds_and_motion_is_in_the_journal(done: tuple[Outcome, Quiet]):
    outcome, _ = done
    assert len(outcome.rounds) == 2 and outcome.stopped is None and outcome.run.export_path.exists()
    fakes = events(outcome.run.folder, "fakes")
    assert all(event["real_motion"] > 0 and event["fake_motion"] > 0 for event in fakes) and len(fakes) == 2
    assert all(event["motion"] > 0 for event in events(outcome.run.folder, "judge"))


def test_samples_that_are_compared_with_clips_begin_with_noise_alone(data: Path, tmp_path: Path):
    """Fakes that begin with your clips would be near them whatever the LoRA does. What is looked at has its own guidance."""
    named: list[tuple[Any, float, float]] = []

    class Watched(Session):
        def _store(self, snapshot: Any, settings: Play, names: tuple[int | str, ...]) -> Any:
            named.append((names[0], settings.start, settings.guidance))
            return super()._store(snapshot, settings, names)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("spinlite.selfplay.Session", Watched)
        options = ["model.base=clips-0", "learn.updates=2", "play.start=0.5", "run.rounds=1", "judge.guidance=2.5"]
        train(load_settings(TOY, options, data__folder=str(data)), tmp_path / "r", Quiet())
    assert set(named) == {("train", 0.5, 1.5), ("compared", 1.0, 1.5), ("heldout", 1.0, 2.5)}


def test_a_sheet_of_clips_is_a_strip_and_plays(done: tuple[Outcome, Quiet]):
    samples = done[0].run.folder / "samples"
    assert {path.name for path in samples.glob("*.*")} == {f"round-{k}.{kind}" for k in (1, 2) for kind in ("png", "webp")}
    assert seconds(samples / "round-2.webp") == 9 / 8


def test_samples_of_clips_play_too_and_hold_their_parameters(done: tuple[Outcome, Quiet], command: Command):
    folder = done[0].run.folder
    ended = command("sample", folder, "--prompt", "red ball", "--seeds", "1", "--output", "out")
    assert ended.code == 0, ended
    [path] = Path("out").glob("clips-*.webp")
    assert seconds(path) == 9 / 8
    with Image.open(path) as clip:
        comment = clip.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("red ball <lora:clips-")
    assert seconds(Path("out/sheet.webp")) == 9 / 8


def test_fakes_that_stand_still_stop_a_run_before_it_learns(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real comparison, on fakes whose frames are all their first one."""
    seen: list[Session] = []

    def still(session: Session, k: int, fakes: Any) -> None:
        seen.append(session)
        compare_with_real(session, k, lambda some: fakes(some)[:, :, :1].expand_as(fakes(some)))

    monkeypatch.setattr("spinlite.training.learn.compare_with_real", still)
    watch, folder = Quiet(), tmp_path / "still"
    outcome = train(load_settings(TOY, ["model.base=clips-0", "learn.updates=4"], data__folder=str(data)), folder, watch)
    assert outcome.stopped and "move 0 % as much as your clips: they stand still" in outcome.stopped
    assert events(folder, "guard")[0]["guard"] == "motion" and not events(folder, "update")
    watch.said.clear()
    compare_with_real(seen[0], 1, lambda some: seen[0].encoded.real(some) * 0.6)
    compare_with_real(seen[0], 1, lambda some: seen[0].encoded.real(some) * 0.4)
    assert len(watch.said) == 1 and "move 16 % as much" in watch.said[0] and "--set play.start=0.7" in watch.said[0]
    with pytest.raises(Diverged, match="stand still"):
        compare_with_real(seen[0], 2, lambda some: seen[0].encoded.real(some) * 0.09)


def test_check_shows_clips_and_the_plan_counts_their_frames(data: Path, command: Command):
    Path("clips.toml").write_text('[model]\nfamily = "toy"\nbase = "clips-0"\n[play]\nsampler = "euler"\n', encoding="utf-8")
    shown = command("check", data, "--preset", "clips.toml", "--full", "--html", "page.html")
    said = " ".join(shown.out.split())
    assert "clips 12 files, such as" in said and ".webp: 1.1 s at 8 frames/s; 9 frames at 8/s are used" in said
    assert "32x32, 9 frames" in shown.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 14 and "9 frames at 8/s are used" in page
    sizes = []
    for frames in (5, 9):
        planned = command("plan", "clips.toml", "--vram", "4", "--set", f"model.frames={frames}", "--json")
        assert planned.code == 0, planned
        sizes.append(json.loads(planned.out)["disk"]["fakes"])
    assert sizes[0] * 3 == sizes[1] * 2, "2 and 3 latent frames"
