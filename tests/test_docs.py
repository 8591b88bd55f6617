"""The pages: what they name exists, their links lead somewhere, and their commands can be typed."""

import ast
import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from spinlite.cli.app import app
from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
USER_PAGES = ["getting-started", "troubleshooting", "settings", "data", "lora", "figures", "models", "ui"]
FOR_USERS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in USER_PAGES)]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
NAMED = re.findall(r"`([\w/]+\.py):([\w.]+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES))
FILE = re.compile(r"`((?:\w+/)*\w+/[\w-]+\.(?:py|md)|(?:spinlite|tests|docs|presets|\.ci)/[\w./-]*)[:\w.]*`")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def names_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module's or class's body defines, by name: functions, classes, constants, fields."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.Assign():
                found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
    return found


@cache
def module_names(path: Path) -> dict[str, ast.stmt]:
    return names_in(ast.parse(path.read_text(encoding="utf-8")).body)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)), ids=lambda part: part)
def test_what_a_page_names_is_in_the_code(file: str, name: str):
    """`folder/file.py:name` and `folder/file.py:Class.name`, below spinlite/."""
    path = ROOT / "spinlite" / file
    assert path.is_file(), file
    names = module_names(path)
    for part in name.split("."):
        assert part in names, f"{file} has no {name}"
        names = names_in(getattr(names[part], "body", []))


def test_the_walk_names_functions_of_every_stage():
    walk = ARCHITECTURE.read_text(encoding="utf-8").partition("## The walk")[2].partition("\n## ")[0]
    folders = {file.partition("/")[0] for file, _ in re.findall(r"`([\w/]+\.py):([\w.]+)`", walk)}
    assert {"cli", "config", "data", "families", "lora", "training", "maths", "methods", "runs", "export", "memory"} <= folders


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_a_page_names_are_there(page: Path):
    for name in FILE.findall(page.read_text(encoding="utf-8")):
        assert any(place.exists() for place in (ROOT / name, ROOT / "spinlite" / name)), f"{page_name(page)} names {name}"


def test_the_map_holds_every_package():
    drawing = ARCHITECTURE.read_text(encoding="utf-8").partition("## The map")[2].partition("\n## ")[0]
    missing = {name for name in FLOORS if not name.startswith("__") and not re.search(rf"\b{name}(/|\.py)", drawing)}
    assert not missing


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http", "mailto")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{page_name(page)} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page_name(page)} links to {target}"


def commands(page: Path) -> list[str]:
    """The `spinlite …` lines of a page's code blocks, without comments."""
    blocks = re.findall(r"(?ms)^```\n(.*?)^```", page.read_text(encoding="utf-8"))
    lines = [line.partition(" #")[0].rpartition("&& ")[2].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("spinlite ")]


COMMANDS = [pytest.param(command, id=f"{page.stem}: {command}") for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pages_command_can_be_typed(command: str):
    """The command and its options exist; its preset ships, and takes the settings."""
    group = typer.main.get_command(app)
    _, name, *words = shlex.split(command)
    assert name in group.commands, name  # pyright: ignore[reportAttributeAccessIssue]
    found = group.commands[name].make_context(name, list(words)).params  # pyright: ignore[reportAttributeAccessIssue]
    if preset := found.get("preset"):
        if preset == "PRESET":
            preset = "demo"
        assert preset in shipped_presets()
        load_settings(preset, found.get("set_") or [], data__folder=found.get("data") if name == "train" else None)
    for word, after in itertools.pairwise(words):
        assert word != "--set" or "=" in after


def test_the_readme_is_short_and_begins_with_the_picture():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert any("docs/demo-round-5.png" in line for line in lines[:8])


def test_the_demos_report_needs_nothing_but_itself():
    page = (ROOT / "docs" / "demo-report.html").read_bytes()
    assert len(page) <= 1.5e6 and b"<script" not in page and not re.search(rb'(src|href)="(?!data:)', page)
    assert page.count(b"data:image/jpeg") > 5 and b"after round 5" in page


def test_the_readme_holds_the_line_that_ci_runs():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"pip install .*&& pytest", line) for line in lines)


def test_the_pages_for_users_can_be_read_in_an_hour():
    words = {page_name(page): len(page.read_text(encoding="utf-8").split()) for page in FOR_USERS}
    assert sum(words.values()) < 12_000, words  # 200 a minute
