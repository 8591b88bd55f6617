"""Prompts of the user's own, a line each: text, then options in kohya's notation.

"a red fox --n blurry --d 42 --w 768 --h 512 --s 30 --l 4" is drawn without "blurry", from seed 42, 768 px wide and 512 high, in
30 sampling steps with a CFG scale of 4. `@FILE` stands for the lines of a file.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from spinlite.config.decode import decode
from spinlite.config.field_types import Section, expand
from spinlite.config.kinds import Kind
from spinlite.config.spelling import show
from spinlite.errors import SpinliteError

MOST = 48  # prompts of a run
OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z])")
LETTERS = {"n": "negative", "d": "seed", "w": "width", "h": "height", "s": "steps", "l": "guidance"}


class Prompt(Section):
    """What to draw, and how. What is none is chosen where it is drawn: seed 0, the model's own size, the run's sampling."""

    text: str
    negative: str = ""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    width: int | None = Field(default=None, ge=8, le=4096)  # px
    height: int | None = Field(default=None, ge=8, le=4096)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=1, le=50)


def read_prompts(given: Sequence[str]) -> list[Prompt]:
    """Prompts, as they are written; @FILE, or a name that ends with .txt, stands for the lines of a file.

    Empty lines and lines that begin with # are left out. Raises SpinliteError if there are no others, a file can't be read, or
    an option is none.
    """
    found: list[Prompt] = []
    for text in given:
        if text.startswith("@") or (text.lower().endswith(".txt") and len(text.splitlines()) == 1):
            found += _read_file(text.removeprefix("@"))
        elif text.strip():
            found.append(parse_prompt(text, f"the prompt {show(text)}"))
    if not found:
        raise SpinliteError("there is no prompt", fix='write what to draw, e.g. "a cat", or @FILE for the lines of a file')
    return found


def parse_prompt(line: str, where: str) -> Prompt:
    """A line -> its prompt. Raises SpinliteError, with the place `where`, if an option is none."""
    text, *options = OPTION.split(" ".join(line.split()))
    if not text.strip():
        raise SpinliteError(f"{where}: there is nothing to draw", fix="write what to draw in front of the options")
    values: dict[str, Any] = {"text": text.strip()}
    for option in options:
        letter, _, value = option.partition(" ")
        if letter.lower() not in LETTERS:
            known = ", ".join(f"--{each} {name}" for each, name in LETTERS.items())
            raise SpinliteError(f"{where}: there is no option --{letter}", fix=f"leave it out; there are {known}")
        name = LETTERS[letter.lower()]
        values[name] = Kind(Prompt.model_fields[name]).parse(value) if name != "negative" else value
    try:
        return Prompt.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        letter = next(letter for letter, each in LETTERS.items() if each == name)
        takes = str(Kind(Prompt.model_fields[name])).removesuffix(" (or none)")
        raise SpinliteError(f"{where}: --{letter}, the {name}, is {show(values[name])}", fix=f"write {takes}") from None


def _read_file(name: str) -> Iterator[Prompt]:
    try:
        path = Path(expand(name))
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        problem = f"can't read the prompts of {name}: {getattr(error, 'strerror', None) or error}"
        raise SpinliteError(problem, fix="check the name after @") from None
    for number, line in enumerate(decode(content, name).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield parse_prompt(line, f"line {number} of {name}")
