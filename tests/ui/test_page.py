"""The page in a real Chromium: a run from its start to its LoRA, by clicks alone; one server, one browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

import spinlite
from spinlite.runs.lock import OWNER, is_held
from tests.toy import TOY

pytest.importorskip("nicegui")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PATIENCE = 90  # seconds: machines that run tests are busy
HOSTILE = '<img src=x onerror="hacked=1"> {{7*7}} & "quotes"'
AXE = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")


class Server:
    """`spinlite ui`, as a process that can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        paths = os.pathsep.join([str(Path(spinlite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        # the library takes it for a test of its own if it sees pytest's variable
        others = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        home = {"XDG_CACHE_HOME": str(self.folder / "cache"), "LOCALAPPDATA": str(self.folder / "cache")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spinlite", "ui", "--no-browser", "--port", str(self.port)], cwd=self.folder,
            stdout=subprocess.PIPE, text=True, encoding="utf-8", env=others | home | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, 20_000 + os.getpid() % 20_000)
    yield server
    server.kill()
    for owner in (tmp_path / "runs").glob(f"*/{OWNER}"):  # a run that a failed test left under way
        os.kill(json.loads(owner.read_text(encoding="utf-8"))["process"], signal.SIGTERM)


@pytest.fixture
def tab(server: Server) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1100, "height": 800})
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        open_first(page, server.address)
        yield page
        browser.close()


def open_first(page: Any, address: str) -> None:
    """Open the page as soon as the server answers."""
    until(lambda: answers(page, address), "the server answers")


def answers(page: Any, address: str) -> bool:
    try:
        return page.goto(address).ok
    except playwright.Error:
        return False


def until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"not in {PATIENCE} s: {what}"
        time.sleep(0.1)


def problems(page: Any) -> list[str]:
    """What axe finds that keeps people from using the page, once what fades in or out has done so."""
    page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished.catch(() => 0)))")
    page.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    portals = "q-portal--menu"  # a menu lies outside of the page's landmarks, which is of no weight
    return [f"{each['id']}: {html[:200]}" for each in found if portals not in (html := each["nodes"][0]["html"])]


def fits(page: Any) -> bool:
    """Whether nothing has to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def prepare(folder: Path, swatches: Path) -> Path:
    """A preset with short rounds, many of them; a caption and a folder that would be markup."""
    preset = folder / "mine.toml"
    preset.write_text(
        f"extends = '{TOY}'\n[learn]\nupdates = 150\noptimizer = 'adamw'\n[judge]\nstop = false\n[run]\nrounds = 2\n",
        encoding="utf-8",
    )
    for path in swatches.glob("*1.txt"):
        path.write_text(HOSTILE, encoding="utf-8")
    (swatches / "<i>inside</i>".replace("/", "∕")).mkdir()
    return preset


def add_cells(run: Path, k: int, colour: str) -> None:
    """Pictures of a round, as a run leaves them, in place of its own."""
    shutil.rmtree(run / "samples" / f"round-{k}", ignore_errors=True)
    for number, prompt in enumerate((HOSTILE, "red blue"), 1):
        info = PngImagePlugin.PngInfo()
        info.add_text("spinlite prompt", json.dumps({"text": prompt}))
        path = run / "samples" / f"round-{k}" / f"heldout-{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (colour, "gray")[number - 1]).save(path, pnginfo=info)


def test_a_run_from_its_start_to_its_lora_by_clicks_alone(tab: Any, server: Server, swatches: Path, tmp_path: Path):
    preset, run = prepare(tmp_path, swatches), tmp_path / "runs" / "mine"
    start(tab, preset, swatches)
    tab.get_by_text("running", exact=True).wait_for()
    tab.get_by_text("after round 1").wait_for()  # a round has arrived, and its sheet is shown
    second = tab.context.new_page()
    second.goto(tab.url)
    second.get_by_role("button", name="Stop").wait_for()
    second.get_by_text("of 60 rounds").wait_for()
    survive(tab, server, run)
    tab.get_by_role("button", name="Stop").click()
    for page in (tab, second):
        page.get_by_role("button", name="Go on").wait_for()
        page.get_by_text("interrupted").wait_for()
    second.close()
    assert not is_held(run)
    stopped_at = len((run / "journal.jsonl").read_bytes())
    tab.get_by_role("button", name="Go on").click()
    tab.get_by_role("button", name="Stop").wait_for()
    until(lambda: len((run / "journal.jsonl").read_bytes()) > stopped_at, "the run goes on")
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_role("button", name="Go on").wait_for()
    write_lora(tab, run)
    choose(tab, run)
    look_everywhere(tab, tmp_path)
    assert not tab.evaluate("window.hacked")


def start(tab: Any, preset: Path, swatches: Path) -> None:
    """A new run of 60 rounds; a wrong number is refused, and said."""
    tab.get_by_role("button", name="New run").click()
    tab.get_by_label("preset", exact=True).click()
    tab.get_by_role("option", name="a preset file of mine").click()
    tab.get_by_label("preset file").fill(str(preset))
    tab.get_by_text("points in the plane").wait_for()
    tab.get_by_label("folder with your pictures").fill(str(swatches))
    tab.get_by_role("button", name="Browse").click()
    tab.get_by_role("button", name="<i>inside<∕i>").wait_for()
    assert problems(tab) == []
    tab.get_by_role("button", name="Take this folder").click()
    tab.get_by_text("Every setting").click()
    tab.get_by_label("search").fill("rounds")
    tab.get_by_label("rounds", exact=True).fill("0")
    tab.get_by_text("should be a whole number, at least 1").wait_for()
    assert problems(tab) == []
    tab.get_by_label("rounds", exact=True).fill("60")
    tab.get_by_text("--set run.rounds=60").wait_for()
    tab.get_by_role("button", name="Start").click()
    tab.wait_for_url("**/run/mine")


def survive(tab: Any, server: Server, run: Path) -> None:
    """The server is killed: the run goes on, and so does the open page once the server is back."""
    server.kill()
    sheets = run / "samples"
    last = len([*sheets.glob("*.png")])
    until(lambda: len([*sheets.glob("*.png")]) > last + 1, "the run goes on without the server")
    server.start()
    until(lambda: shown_rounds(tab) > last + 1, "the page goes on")


def shown_rounds(tab: Any) -> int:
    """How many rounds the page says are finished."""
    try:
        return int(tab.get_by_text("of 60 rounds").inner_text(timeout=1000).split()[0])
    except playwright.Error:  # it is being loaded
        return 0


def write_lora(tab: Any, run: Path) -> None:
    tab.get_by_role("button", name="Write LoRA").click()
    tab.get_by_role("combobox", name="round").click()
    tab.get_by_role("option", name="round 1", exact=True).wait_for()
    assert problems(tab) == []
    tab.get_by_role("option", name="round 1", exact=True).click()
    tab.get_by_role("listbox").first.wait_for(state="hidden")
    assert problems(tab) == []
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.get_by_text("checked").wait_for()
    assert (run / "export" / "mine-1.safetensors").is_file()
    tab.get_by_role("button", name="Close").click()


def choose(tab: Any, run: Path) -> None:
    """The slider shows the base and a round; two choices, one of them taken back and made again."""
    add_cells(run, 0, "red")
    add_cells(run, 1, "blue")
    tab.goto(tab.url)
    tab.get_by_text(HOSTILE).wait_for()
    picture = tab.locator("figure").filter(has_text=HOSTILE).last.locator("img")
    tab.get_by_role("slider", name="round").focus()
    for key, shown in (("Home", "/round-0/"), ("ArrowRight", "/round-1/")):
        tab.keyboard.press(key)
        until(lambda shown=shown: shown in (picture.get_attribute("src") or ""), shown)
    assert problems(tab) == []
    tab.get_by_text("Choose pictures").click()
    tab.get_by_role("combobox", name="round").click()
    tab.get_by_role("option", name="round 1, beside", exact=False).last.click()
    tab.get_by_text("1 left").wait_for()  # the other pair is the same picture twice
    tab.get_by_role("heading", name=HOSTILE).wait_for()
    assert problems(tab) == [] and "round-1" not in tab.content()
    tab.get_by_role("button", name="This one").first.click()
    tab.get_by_text("of 1 (likely").wait_for()
    tab.get_by_role("button", name="Undo").click()
    tab.keyboard.press("ArrowRight")
    tab.get_by_text("of 1 (likely").wait_for()
    until(lambda: len([*(run / "votes").glob("*/*.png")]) == 2, "the pair that was chosen from")


def look_everywhere(tab: Any, folder: Path) -> None:
    """Narrow, dark, and with a run whose name would be markup."""
    hostile = folder / "runs" / HOSTILE.replace("/", "")
    hostile.mkdir()
    shutil.copyfile(folder / "runs" / "mine" / "journal.jsonl", hostile / "journal.jsonl")
    tab.set_viewport_size({"width": 320, "height": 700})
    tab.emulate_media(color_scheme="dark")
    for link, there in (("Runs", HOSTILE), ("New run", "preset"), ("LoRA files", "Drop a")):
        tab.get_by_role("link", name=link, exact=True).click()
        tab.get_by_text(there).first.wait_for()
        assert problems(tab) == [] and fits(tab), link
    tab.goto(tab.url.replace("/lora", "/run/mine"))
    tab.get_by_text(HOSTILE).first.wait_for()
    assert problems(tab) == [] and fits(tab)
    lora = folder / "runs" / "mine" / "export" / "mine-1.safetensors"
    tab.goto(tab.url.replace("/run/mine", "/lora"))
    tab.locator("input[type=file]").set_input_files(str(lora))
    tab.get_by_text("Lower its rank").or_(tab.get_by_text("hash", exact=True)).first.wait_for()
