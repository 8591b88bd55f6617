import pytest

from spinlite.errors import SpinliteError
from spinlite.runs.names import check_name

REFUSED = {
    "too long": "a" * 101, "too many bytes": "ä" * 60 + "字" * 40, "a newline": "a\nb",
    "an escape": "a\x1b[31mb", "turned round": "a\u202eb",
    "invisible": "a\u200bb", "not UTF-8": "a\udce4", "NUL": "a\0b", "Windows' console": "con", "a port": "COM1.style",
    "a parent": "..", "a path": "a/b", "a path of Windows": "a\\b", "a drive": "c:style", "a wildcard": "a*",
    "ours": "Cache", "nothing": "", "an option": "-x", "a dot at the end": "style.", "a space at the end": "style ",
    "hidden": ".style",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_a_name_that_a_computer_or_a_screen_cannot_hold_is_refused(name: str):
    with pytest.raises(SpinliteError, match="can't be a run's name") as caught:
        check_name(name)
    assert caught.value.problem.isprintable() and "type" not in caught.value.problem
    assert "give a plain --name, such as my-style" in caught.value.fix


@pytest.mark.parametrize("name", ["demo", "my style 2", "Müller-été", "字", "v1.5_b", "console", "a" * 100, "(new) + more"])
def test_a_plain_name_is_taken(name: str):
    check_name(name)
