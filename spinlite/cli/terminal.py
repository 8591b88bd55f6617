"""The screen under every command. What users and files say can't steer the terminal, and text breaks between words."""

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HEADING = re.compile(r".{0,26}  (?=\S)|\s*")  # what following lines are indented by: blanks, or columns of words before them


class Screen(Console):
    """Shows text as it is, never as markup: control characters and marks that turn its direction are spelt out.

    In a terminal a line that is too long breaks between words, and goes on below its beginning. Elsewhere it stays one line.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich, but with `visible` text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich; one Text is broken between words."""
        if self.is_terminal and len(objects) == 1 and isinstance(objects[0], Text):
            lines = [_wrap(line, self.width) for line in objects[0].split(allow_blank=True)]
            objects = (Text("\n").join(lines),)
        super().print(*objects, **how)


def visible(text: str) -> str:
    """Text in which characters that steer a terminal are spelt out: the escape character becomes \\x1b."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def _wrap(line: Text, width: int) -> Text:
    """A line broken between words. A command stays whole, so that it can be copied; so does a word that no line holds."""
    plain = line.plain
    indent = len(HEADING.match(plain)[0])  # pyright: ignore[reportOptionalSubscript]  (it matches anything)
    if cell_len(plain) <= width or plain.startswith("spinlite ", indent):
        return line
    breaks, column = [], indent
    for word in re.finditer(r"\S+\s*", plain[indent:]):
        length = cell_len(word[0].rstrip())
        if column + length > width and column > indent:
            breaks.append(indent + word.start())
            column = indent
        column += cell_len(word[0])
    parts = line.divide(breaks)
    for part in parts:
        part.rstrip()
    return Text("\n" + " " * indent).join(parts)
