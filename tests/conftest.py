"""What the tests share: one thread (toy tensors gain nothing from more), a folder of swatches, the toy settings."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from PIL import Image

from spinlite.cli.app import main
from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from tests.toy import TOY

torch.set_num_threads(1)  # also for fixtures of whole modules, which are made before those of a test


class Ended(NamedTuple):
    code: Any
    out: str
    err: str

    def error(self) -> tuple[str, str]:
        """(problem, fix) of a command that failed as it should."""
        lines = self.err.splitlines()
        assert self.code == 1 and len(lines) == 2 and "Traceback" not in self.out + self.err, self
        assert lines[0].startswith("error: ") and lines[1].startswith("fix:   "), self
        return lines[0].removeprefix("error: "), lines[1].removeprefix("fix:   ")


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`spinlite WORDS` in an empty folder, in this process."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["spinlite", *map(str, words)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_swatches(root: Path) -> Path:
    """40 pictures whose points lie on a ring, captioned by the half planes they are in."""
    folder = root / "swatches"
    folder.mkdir()
    for i in range(40):
        x, y = math.cos(i * math.tau / 40), math.sin(i * math.tau / 40)
        Image.new("RGB", (16, 16), (round(127.5 + 100 * x), 0, round(127.5 + 100 * y))).save(folder / f"p{i}.png")
        caption = f"{'red' if x > 0 else 'dark'} {'blue' if y > 0 else 'plain'}"
        (folder / f"p{i}.txt").write_text(caption, encoding="utf-8")
    return folder


def small_settings(swatches: Path) -> Settings:
    """The toy with a loss that does not make much of rounding: for comparing runs that compute the same in other ways."""
    learning = ["learn.updates=4", "learn.optimizer=adamw", "learn.caption_dropout=0.5"]
    return load_settings(TOY, [*learning, "method.beta=5.0", "judge.stop=false"], data__folder=str(swatches))


@pytest.fixture
def swatches(tmp_path: Path) -> Path:
    return write_swatches(tmp_path)


@pytest.fixture
def toy(swatches: Path) -> Settings:
    return load_settings(TOY, data__folder=str(swatches))


@pytest.fixture
def small(swatches: Path) -> Settings:
    return small_settings(swatches)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small random bases: sd15, sd21 and sdxl in diffusers' layout, and each as one file in the original."""
    from tests.families import tiny  # with diffusers, which most tests do without

    root = tmp_path_factory.mktemp("bases")
    for kind in ("sd15", "sd21", "sdxl"):
        tiny.save(root / f"{kind}.safetensors", tiny.original(tiny.make(root, kind)))
    return root


@pytest.fixture
def configs(tiny_bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Single files are read by the shapes of the small bases, not of the real ones."""
    monkeypatch.setattr("spinlite.families.record.CONFIGS", tiny_bases)
    return tiny_bases


@pytest.fixture(scope="session")
def flow_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random flow models in diffusers' layout, and beside them the settings of the published ones of other kinds."""
    from spinlite.families.record import CONFIGS
    from tests.families.flows import TINY

    root = tmp_path_factory.mktemp("flow") / "configs"
    shutil.copytree(CONFIGS, root)
    for name, maker in TINY.items():
        shutil.rmtree(root / name)
        maker.make(root, name)
    return root


@pytest.fixture
def flow_configs(flow_bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Flow models are recognised and read by the settings of the small ones."""
    monkeypatch.setattr("spinlite.families.record.CONFIGS", flow_bases)
    return flow_bases
