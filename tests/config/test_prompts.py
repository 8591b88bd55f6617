"""Prompts as people write them, in a preset, on the command line or in a file of kohya's."""

from pathlib import Path
from typing import Any

import pytest

from spinlite.config.load import load_settings, validate_settings
from spinlite.config.prompts import Prompt, read_prompts
from spinlite.errors import SpinliteError
from tests.toy import TOY

LINES: dict[str, dict[str, Any]] = {
    "a red fox": {},
    "a cat --n blurry, bad --d 42 --w 768 --h 512 --s 30 --l 4.5": {
        "text": "a cat", "negative": "blurry, bad", "seed": 42, "width": 768, "height": 512, "steps": 30, "guidance": 4.5,
    },
    "  a cat   --D 0\t--S 1  ": {"text": "a cat", "seed": 0, "steps": 1},
    "a well-known cat -- with a hat, 3--4 m": {},
    "a\ncat": {"text": "a cat"},
    "<b>a cat</b> (big:1.2) \\(x\\) {{ x }}": {},
}  # fmt: skip


@pytest.mark.parametrize(("line", "parts"), LINES.items(), ids=range(len(LINES)))
def test_a_line_is_text_and_options(line: str, parts: dict[str, Any]):
    assert read_prompts([line]) == [Prompt.model_validate({"text": line} | parts)]


REFUSED = {
    "a --q 3": "no option --q", "--n y": "nothing to draw", "a --s 0": "--s, the steps, is 0", "a --w 7.5": "the width, is 7.5",
    "a --l nan": "the guidance, is nan", "a --d -1": "the seed, is -1", "a --s": "the steps, is ''", "a --h x": "is 'x'",
    "": "there is no prompt", "@none": "can't read the prompts of none", "no\0.txt": "can't read the prompts",
}  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_no_prompt_is_refused(line: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpinliteError, match=problem):
        read_prompts([line])


def test_a_file_holds_a_prompt_a_line_and_its_faults_have_a_place(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# mine\n\na fox --d 3\n  a cat\n", encoding="utf-8")
    assert read_prompts([str(file)]) == read_prompts([f"@{file}"]) == [Prompt(text="a fox", seed=3), Prompt(text="a cat")]
    file.write_text("a fox\na cat --s no\n", encoding="utf-8")
    with pytest.raises(SpinliteError, match=r"line 2 of .*prompts.txt: --s, the steps, is 'no'"):
        read_prompts([f"@{file}"])


def test_prompts_are_given_as_text_or_as_a_list_and_a_number_is_that_of_older_presets():
    for text, prompts in (("a red fox", ["a red fox"]), ('["a", "b"]', ["a", "b"]), ("@p.txt", ["@p.txt"]), ("[]", [])):
        assert load_settings(TOY, [f"judge.prompts={text}"]).judge.prompts == prompts
    assert (
        load_settings(TOY, ["judge.prompts=3"]).judge.model_dump()
        == load_settings(TOY, ["judge.captions=3"]).judge.model_dump()
    )
    assert validate_settings({"judge": {"draws": 2, "prompts": 5, "stop": True}}).judge.captions == 5
    for wrong in (["judge.prompts=[1]"], ["judge.prompts=99"], ["judge.prompts=true"]):
        with pytest.raises(SpinliteError):
            load_settings(TOY, wrong)
