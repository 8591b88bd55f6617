"""What a setting takes: its type and range in words, what text means for it, and a value of it that makes sense."""

import difflib
import tomllib
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from spinlite.config.field_types import PathText, expand

YES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list[str]: "text, or a list of texts"}


class Kind:
    """What a field takes. `choices`: the values of a Literal by their words; `bounds`: the limits by pydantic's names."""

    def __init__(self, field: FieldInfo) -> None:
        self.default = field.default
        self.example = (field.examples or [None])[0]
        parts = list(get_args(field.annotation)) if _is_union(field.annotation) else [field.annotation]
        self.optional = type(None) in parts
        inner = next(part for part in parts if part is not type(None))
        self.is_path = inner is PathText or any(getattr(rule, "func", None) is expand for rule in field.metadata)
        values = get_args(inner) if get_origin(inner) is Literal else ()
        values = sorted(values, key=lambda value: (value != self.default, value))  # Python's order is not always ours
        self.choices = {str(value): value for value in values}
        self.type: Any = str if self.choices or self.is_path else inner
        self.bounds = {name: getattr(rule, name) for rule in field.metadata for name in ("gt", "ge", "lt", "le")
                       if hasattr(rule, name)}  # fmt: skip

    def __str__(self) -> str:
        """In words: "a whole number, 1 to 1024"."""
        if self.choices:
            *others, last = self.choices
            noun = f"{', '.join(others)} or {last}"
        else:
            noun = "a path" if self.is_path else NOUNS.get(self.type, "tables")
        return (
            noun
            + (f", {self._range()}" if self.bounds else "")
            + (" (or none)" if self.optional and "none" not in self.choices else "")
        )

    def parse(self, text: str) -> Any:
        """What a user means by text on the command line. Text that makes no sense is returned as it is."""
        word = text.strip().lower()
        if word == "none" and self.optional and word not in self.choices:
            return None
        if word in self.choices:
            return self.choices[word]
        if text[:1] in ("'", '"') or self.type not in (bool, int, float, str):
            return _toml(text)
        if self.type is bool:
            return YES.get(word, text)
        number = _number(text) if self.type in (int, float) else text
        return int(number) if self.type is int and isinstance(number, float) and number.is_integer() else number

    def suggest(self, value: Any) -> Any:
        """A value that makes sense: near a wrong one, where that shows what was meant."""
        if self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1) or [*self.choices]
            return self.choices[near[0]]
        if self.type in (int, float):
            number = _number(value.replace(",", ".")) if isinstance(value, str) else value
            if isinstance(number, int | float) and number is not True and abs(number) < 1e12:
                near = self._clamp(number)
                if self._inside(near):
                    return near
        if self.type is bool and (meant := YES.get(str(value).lower())) is not None:
            return meant
        if self.type is str and isinstance(value, str | int | float) and str(value).strip():
            return repr(value)[1:-1].replace("\\\\", "/").replace("\\", "/") if self.is_path else str(value)
        if self.type == list[str] and value and isinstance(value, str):
            return value
        return self.any()

    def any(self) -> Any:
        """A value that makes sense, whatever was given."""
        known = (self.default, self.example, True if self.type is bool else None, "none" if self.optional else None)
        return next((value for value in known if value not in (None, "", [])), "…")

    def _clamp(self, number: float) -> float:
        number = max(number, self.bounds.get("ge", number))
        number = min(number, self.bounds.get("le", number))
        return round(number) if self.type is int else number

    def _inside(self, number: float) -> bool:
        return self.bounds.get("gt", number - 1) < number < self.bounds.get("lt", number + 1)

    def _range(self) -> str:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        limits = {name: _brief(self.bounds[name]) for name in words if name in self.bounds}
        if {"ge", "le"} == set(limits):
            return f"{limits['ge']} to {limits['le']}"
        return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return text


def _brief(number: float) -> str:
    return f"2^{number.bit_length() - 1}" if isinstance(number, int) and number > 1e6 else f"{number:g}"
