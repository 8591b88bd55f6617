"""Presets as people write them: what is understood, and what is refused with its place and a remedy."""

import itertools
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.methods.registry import METHODS
from spinlite.methods.seppo import SePPO
from spinlite.methods.spin import SPIN
from tests.toy import TOY

SHIPPED = sorted(shipped_presets()["demo"].parent.rglob("*.toml"))
Write = Callable[..., str]


@pytest.fixture
def preset(tmp_path: Path) -> Write:
    """Writes a preset; returns its path."""

    def write(content: str | bytes, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def refused(preset: str, *overrides: str) -> SpinliteError:
    with pytest.raises(SpinliteError) as caught:
        load_settings(preset, overrides)
    assert "\n" not in caught.value.problem + caught.value.fix
    return caught.value


# What ships, and what is written


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_preset_loads_and_builds_its_method(path: Path):
    settings = load_settings(str(path))
    assert settings.about and isinstance(settings.build_method(), METHODS[settings.method["name"]])


def test_every_shipped_preset_has_a_name():
    assert sorted(shipped_presets().values()) == SHIPPED
    assert all(load_settings(name) == load_settings(str(path)) for name, path in shipped_presets().items())


@pytest.mark.parametrize("preset", [*shipped_presets(), TOY], ids=lambda p: Path(p).stem)
@pytest.mark.parametrize("overrides", [[], ["method.name=spin", "method.bound=inf", "model.alpha=3.5", 'data.folder="a\\"c"']])
def test_settings_survive_being_written_out(tmp_path: Path, preset: str, overrides: list[str]):
    settings = load_settings(preset, overrides)
    (tmp_path / "settings.toml").write_bytes(tomli_w.dumps(settings.model_dump(exclude_none=True)).encode())
    assert load_settings(str(tmp_path / "settings.toml")) == settings


def test_written_settings_hold_every_default(preset: Write):
    tree = load_settings(preset("")).model_dump()
    assert tree["method"] == {"name": "spin", **asdict(SPIN())}
    assert set(tree) == set(Settings.model_fields) and all(tree[name] for name in set(tree) - {"about"})


def test_settings_are_frozen():
    settings = load_settings("demo")
    for change in (lambda: setattr(settings, "learn", None), lambda: setattr(settings.learn, "lr", 1.0)):
        with pytest.raises(ValidationError, match="frozen"):
            change()


# What is understood


def test_a_file_may_begin_with_a_byte_order_mark(preset: Write):
    assert load_settings(preset(b'\xef\xbb\xbfabout = "x"\r\n[learn]\r\nupdates = 7\r\n')).learn.updates == 7


def test_settings_of_the_command_line_go_over_the_presets(preset: Write):
    path = preset("[learn]\nupdates = 7\nbatch = 3\n")
    overrides = ["learn.updates=8", "model.alpha = 2", "data.folder=C:\\new"]
    settings = load_settings(path, overrides, run__rounds=5, data__folder=None)
    assert (settings.learn.updates, settings.learn.batch, settings.model.alpha, settings.run.rounds) == (8, 3, 2.0, 5)
    assert settings.data.folder == "C:\\new"
    assert load_settings(path, ["run.rounds=4"], run__rounds=5).run.rounds == 5


@pytest.mark.parametrize("overrides", [["method.name=seppo", "method.beta=3"], ["method.beta=3", "method.name=seppo"]])
def test_the_order_of_settings_does_not_matter(preset: Write, overrides: list[str]):
    assert load_settings(preset(""), overrides).build_method() == SePPO(beta=3.0)


def test_another_method_has_its_own_defaults(preset: Write):
    path = preset('[method]\nname = "seppo"\nbeta = 3\ngate = "none"\n')
    assert load_settings(path, ["method.name=spin"]).build_method() == SPIN()
    assert load_settings(path, ["method.name=seppo"]).build_method() == SePPO(beta=3.0, gate="none")
    assert load_settings(preset("[method]\nbeta = 3\n"), ["method.name=spin"]).build_method() == SPIN(beta=3.0)


def test_extending_is_a_chain_and_the_nearest_wins(preset: Write):
    preset('about = "first"\n[learn]\nupdates = 1\nbatch = 1\nlr = 0.1\n[method]\nname = "seppo"\nbeta = 3\n', "a.toml")
    preset('extends = "a.toml"\n[learn]\nupdates = 2\nbatch = 2\n', "b.toml")
    third = preset('about = "third"\nextends = "b.toml"\n[learn]\nupdates = 3\n[method]\nbound = 2\n', "c.toml")
    settings = load_settings(third)
    assert (settings.about, settings.learn.updates, settings.learn.batch, settings.learn.lr) == ("third", 3, 2, 0.1)
    assert settings.build_method() == SePPO(beta=3.0, bound=2.0)


def test_extending_and_naming_another_method_leaves_the_first_ones_settings(preset: Write):
    preset('[method]\nname = "seppo"\nbeta = 3\n', "a.toml")
    assert load_settings(preset('extends = "a.toml"\n[method]\nname = "spin"\n')).build_method() == SPIN()
    assert load_settings(preset('extends = "a.toml"\n[method]\nname = "seppo"\nbound = 2\n')).build_method() == SePPO(3.0, 2.0)


def test_a_preset_extends_shipped_ones_by_name_and_files_from_where_it_stands(preset: Write, monkeypatch: pytest.MonkeyPatch):
    mine = preset('extends = "demo"\n[learn]\nupdates = 7\n', "demo.toml")
    assert load_settings(mine).learn.updates == 7 and load_settings(mine).data == load_settings("demo").data
    preset("[learn]\nupdates = 8\n", "base.toml")
    deep = preset('extends = "../base.toml"\n', "deep/mine.toml")
    monkeypatch.chdir(Path(__file__).parent)
    assert load_settings(deep).learn.updates == 8


# What is refused


NEAREST = {
    "dmo": "did you mean 'demo'?", "demo-stf": "did you mean 'demo-sft'?", "nothing-like-it": "use one of: ",
    "": "use one of: ", ".": "use one of: ",
}  # fmt: skip


@pytest.mark.parametrize(("name", "fix"), NEAREST.items())
def test_an_unknown_preset_names_the_nearest(name: str, fix: str):
    error = refused(name)
    assert f"no preset {name!r}" in error.problem and fix in error.fix and "`spinlite presets`" in error.fix


SET = [
    ("lern.updates=3", "unknown section [lern]", "did you mean 'learn'?"),
    ("qqq.updates=3", "unknown section [qqq]", "use one of: model, data, method, play, draw, learn, judge, memory, run"),
    ("about.x=3", "unknown section [about]", "use one of"),
    ("learn.updatse=3", "unknown key 'updatse' in [learn]", "did you mean 'updates'?"),
    ("learn.qqq=3", "unknown key 'qqq' in [learn]", "use one of: updates, batch"),
    ("method.bta=3", "unknown key 'bta' in [method]", "did you mean 'beta'?"),
    ("method.name=sppin", "unknown method 'sppin'", "did you mean 'spin'?"),
    ("method.name=3", "unknown method '3'", "use one of: sft, dpo, spin, seppo"),
    ('method.name=["spin"]', "unknown method '[\"spin\"]'", "spin"),
    ("method.gate=sign", "spin has no setting 'gate'", "remove it, or set method.name to seppo"),
    ("learn.updates", "'learn.updates' is not section.key=value", "--set learn.updates=200"),
    ("updates=3", "updates is learn.updates", "type --set learn.updates=3"),
    ("weight=3", "weight is data.weight or draw.weight", "type --set data.weight=3 or type --set draw.weight=constant"),
    ("foo=3", "'foo=3' is not section.key=value", "--set"),
    ("=3", "'=3' is not section.key=value", "--set"),
    ("a.b.c=3", "'a.b.c=3' is not section.key=value", "--set"),
    ("", "'' is not section.key=value", "--set"),
    ("learn.updates=many", "updates = 'many' in [learn] should be a whole number, at least 1", "--set learn.updates=100"),
    ("learn.updates=", "updates = '' in [learn] should be a whole number", "--set learn.updates=100"),
    ("learn.updates=1.5", "updates = 1.5 in [learn] should be a whole number", "--set learn.updates=2"),
    ("learn.updates=true", "updates = 'true' in [learn] should be a whole number", "--set learn.updates=100"),
    ("learn.lr=false", "lr = 'false' in [learn] should be a number, above 0 and at most 1", "--lr 0.0001"),
    ("learn.lr=0,002", "lr = '0,002' in [learn] should be a number", "--lr 0.002"),
    ("memory.one_graph=1", "one_graph = '1' in [memory] should be true or false", "--set memory.one_graph=true"),
    ("learn.lr=[1]", "lr = '[1]' in [learn] should be a number", "--lr 0.0001"),
    ("data.folder=", "folder = '' in [data] should not be empty", "--data my-pictures"),
    ("data.folder=a\tb", "folder = 'a\\tb' in [data] should not hold a tab", "--data a/tb"),
    ("data.uncaptioned=drop", "uncaptioned = 'drop' in [data] should be skip, error, fixed or name", "data.uncaptioned=skip"),
    ("data.crop=center", "crop = 'center' in [data] should be centre or random", "--set data.crop=centre"),
    ("method.beta=big", "beta = 'big' in [method] should be a number, above 0", "--set method.beta=5000"),
    ("learn.updates=0", "updates = 0 in [learn] should be a whole number, at least 1", "--set learn.updates=1"),
    ("learn.lr=0", "lr = 0 in [learn] should be a number, above 0 and at most 1", "--lr 0.0001"),
    ("learn.lr=2", "lr = 2 in [learn] should be a number, above 0 and at most 1", "--lr 1"),
    ("data.heldout=0.9", "heldout = 0.9 in [data] should be a number, above 0 and below 0.9", "data.heldout=0.1"),
    ("play.guidance=0.5", "guidance = 0.5 in [play] should be a number, 1 to 50", "--set play.guidance=1"),
    ("model.rank=2000", "rank = 2000 in [model] should be a whole number, 1 to 1024", "--rank 1024"),
    ("run.seed=-1", "seed = -1 in [run] should be a whole number, at least 0", "run.seed=0"),
    ("run.seed=99999999999999999999", "seed = 99999999999999999999 in [run]", "run.seed=0"),
    ("draw.high=0", "high = 0 in [draw] should be a number, above 0 and at most 1", "--set draw.high=1"),
    ("method.beta=-1", "beta = -1 in [method] should be a number, above 0", "--set method.beta=5000"),
    ("method.beta=0", "beta = 0 in [method] should be a number, above 0", "method.beta"),
    ("method.anchor=-0.1", "anchor = -0.1 in [method] should be a number, at least 0", "--set method.anchor=0"),
]


@pytest.mark.parametrize(("override", "problem", "fix"), SET, ids=[case[0] for case in SET])
def test_a_setting_that_makes_no_sense_is_refused_with_its_place(preset: Write, override: str, problem: str, fix: str):
    error = refused(preset(""), override)
    assert problem in error.problem and fix in error.fix
    assert "--" not in fix or f"{fix} " in f"{error.fix} "  # what is to be typed is there to its end


def numbers() -> list[str]:
    """section.key of every setting that takes fractions."""
    found = []
    for section, field in Settings.model_fields.items():
        for key, setting in getattr(field.annotation, "model_fields", {}).items():
            if setting.annotation in (float, float | None):
                found.append(f"{section}.{key}")
    return [*found, "method.beta", "method.anchor", "method.bound"]


def test_the_numbers_were_found():
    assert {"learn.lr", "model.alpha", "data.heldout", "play.guidance"} < set(numbers())


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("place", numbers())
def test_no_number_is_endless_but_the_bound(preset: Write, place: str, value: str):
    if (place, value) == ("method.bound", "inf"):
        assert load_settings(preset(""), ["method.bound=inf"]).method["bound"] == float("inf")
    else:
        key = place.partition(".")[2]
        error = refused(preset(""), f"{place}={value}")
        assert error.problem.startswith(f"{key} = {value} in ") and re.search(rf"type --(set \w+\.)?{key}[ =]\d", error.fix)


# fmt: off
FILES: dict[str, tuple[str | bytes, str, str]] = {
    "no-toml": ("[learn\nupdates = 3", "is not valid TOML: Expected ']'", "fix line 1 of the preset: [learn"),
    "twice": ("[learn]\nupdates = 3\nupdates = 4", "is not valid TOML: Cannot overwrite a value", "remove one of the two"),
    "yaml": ("learn:\n  updates: 3\n", "is not valid TOML", "fix line 1 of the preset: learn:"),
    "open": ('[data]\nfolder = """x', "is not valid TOML", "a quote or a bracket is not closed"),
    "latin-1": ('about = "café"'.encode("latin-1"), "is not UTF-8", "save it as UTF-8"),
    "utf-16": ('about = "x"'.encode("utf-16-le"), "is not UTF-8 (UTF-16?)", "save it as UTF-8"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8", "name another file"),
    "yes": ("[data]\nflip = True  # mirrored", "is not valid TOML: Invalid value", "write flip = true in line 2"),
    "point": ("[model]\nalpha = .5", "is not valid TOML: Invalid value", "write alpha = 0.5 in line 2"),
    "bare": ("[model]\nbase = my-model", "is not valid TOML: Invalid value", "write base = 'my-model' in line 2"),
    "backslash": ('[data]\nfolder = "C:\\Users\\me"', "is not valid TOML: Invalid hex",
                  "write folder = 'C:\\Users\\me' in line 2; backslashes need single quotes, or / instead"),
    "tab": ('[data]\nfolder = "D:\\training\\new"', "folder = 'D:\\training\\new' in [data] should not hold a tab, a new line",
            'write folder = "D:/training/new" under [data]'),
    "tab-in-a-source": ('[[data.sources]]\nfolder = "D:\\training"', "should not hold a tab",
                        'write folder = "D:/training" under [[data.sources]]'),
    "text-for-a-number": ('[learn]\nlr = "1e-4"', "lr = '1e-4' in [learn] should be a number", "write lr = 0.0001 under"),
    "number-for-text": ("[data]\ntrigger = 2024", "trigger = 2024 in [data] should be text", 'write trigger = "2024" under'),
    "wrong-section": ("[learn]\nrank = 8", "there is no rank in [learn], but model.rank", "write rank = 8 under [model]"),
    "order": ("[draw]\nlow = 0.5\nhigh = 0.3", "high = 0.3 in [draw] should be above low, which is 0.5",
              "write high = 1 under [draw]"),
    "section": ("[lern]\nupdates = 3", "unknown section [lern] in", "did you mean 'learn'?"),
    "loose-key": ("updates = 3", "updates is learn.updates", "write updates = 3 under [learn]"),
    "key": ("[learn]\nupdatse = 3", "unknown key 'updatse' in [learn]", "did you mean 'updates'?"),
    "method": ('[method]\nname = "sppin"', "unknown method 'sppin'", "did you mean 'spin'?"),
    "other-methods-key": ('[method]\nname = "sft"\nbeta = 3', "sft has no setting 'beta'", "to dpo or spin or seppo"),
    "method-as-text": ('method = "spin"', "method = 'spin' in", "write [method]"),
    "section-as-number": ("learn = 3", "learn = 3 in", "write [learn]"),
    "section-as-list": ("[[learn]]\nupdates = 3", "is not a section", "write [learn]"),
    "about-as-number": ("about = 3", "about = 3 in the preset should be text", 'write about = "3"'),
    "about-as-section": ("[about]\nx = 3", "about = {'x': 3} in the preset should be text", "write about ="),
    "extends-nothing": ('extends = "demoo"', "mine.toml extends it)", "did you mean 'demo'?"),
    "extends-number": ("extends = 3", "extends = 3 in", 'extends = "demo"'),
    "extends-list": ('extends = ["demo"]', "extends = ['demo'] in", 'extends = "demo"'),
    "extends-itself": ('extends = "mine.toml"', "mine.toml extends itself", "remove one `extends`"),
}
# fmt: on


@pytest.mark.parametrize(("content", "problem", "fix"), FILES.values(), ids=FILES)
def test_a_file_that_makes_no_sense_is_refused_with_its_place(preset: Write, content: str | bytes, problem: str, fix: str):
    error = refused(preset(content))
    assert problem in error.problem and fix in error.fix


@pytest.mark.parametrize("section", ["learn", "method"])
def test_what_is_no_section_takes_no_settings_of_the_command_line(preset: Write, section: str):
    assert f"{section} = 3 in" in refused(preset(f"{section} = 3"), f"{section}.batch=3").problem
    preset(f"{section} = 3", "base.toml")
    assert f"{section} = 3 in" in refused(preset(f'extends = "base.toml"\n[{section}]\nbatch = 3')).problem


def test_a_circle_of_presets_is_found_however_it_is_spelled(preset: Write):
    preset('extends = "sub/b.toml"', "a.toml")
    b = preset('extends = "../sub/../a.toml"', "sub/b.toml")
    assert "extends itself" in refused(b).problem and "remove one `extends`" in refused(b).fix


def test_a_broken_preset_is_named_where_another_one_extends_it(preset: Write):
    preset("[learn", "broken.toml")
    error = refused(preset('extends = "broken.toml"'))
    assert "broken.toml is not valid TOML" in error.problem


def test_a_tree_from_elsewhere_is_checked_too():
    """`validate` takes what did not come from a file."""
    with pytest.raises(SpinliteError, match="unknown key 'lern' in the preset"):
        validate_settings({"lern": {}})
    tree: dict[str, Any] = tomllib.loads("[method]\nname = 'dpo'\nbeta = 7")
    assert validate_settings(tree).method["beta"] == 7.0


def test_every_command_of_the_papers_page_is_a_run():
    """Its settings are known and in range, and the method is the row's."""
    page = (Path(__file__).parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")
    section = page.partition("## From the papers to a command")[2].partition("\n## ")[0]
    commands = [shlex.split(command) for command in re.findall(r"`(paper-[^`]+ --[^`]+)`", section)]
    methods = []
    for words in commands:
        overrides = [after for word, after in itertools.pairwise(words) if word == "--set"]
        methods.append(type(load_settings(words[0], overrides).build_method()).__name__)
    assert set(methods) == {"SPIN", "SePPO", "DPO", "SFT", "DRO", "DDO", "KTO", "SUDO"} and len(commands) == 9
