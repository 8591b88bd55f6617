"""What the settings say of themselves: the comments of settings.py and the docstrings of the methods, by setting.

Read as text, so that `--help` needs no torch.
"""

import re
from functools import cache
from pathlib import Path

SETTINGS = Path(__file__).with_name("settings.py")
FIELD = re.compile(r"(?m)^class (\w+)|^    (\w+): .*?  # (.+)$")
ROW = re.compile(r"(?m)^([a-z_]+(?:, [a-z_]+)*)  +(.+(?:\n {6,}.+)*)")  # a row of names and their text in a docstring


@cache
def setting_texts() -> dict[str, str]:
    """The comment of each setting of settings.py, by "section.key"."""
    texts, section = {}, ""
    for title, key, text in FIELD.findall(SETTINGS.read_text(encoding="utf-8")):
        section = title.lower() or section
        if key:
            texts[f"{section}.{key}"] = text
    ours = {f"data.{place.removeprefix('source.')}": text for place, text in texts.items() if place.startswith("source.")}
    return texts | ours


def method_texts(docstring: str) -> dict[str, str]:
    """The text of each setting of a method, from the rows of its docstring."""
    rows = [(names.split(", "), " ".join(text.split())) for names, text in ROW.findall(docstring)]
    return {name: text for names, text in rows for name in names}
