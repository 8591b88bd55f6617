"""Every setting by its place: the fields of Settings, and those of the methods."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from spinlite.config.settings import METHOD, Section, Settings
from spinlite.methods.registry import METHODS

SECTIONS = [name for name in Settings.model_fields if name != "about"]


@cache
def method_model(name: str) -> type[BaseModel]:
    """The settings of a method as a model that validates them."""
    fields: dict[str, Any] = {"name": (str, name)}
    for f in dataclasses.fields(METHODS[name]):
        infinite = {"allow_inf_nan": True} if f.name == "bound" else {}  # only a bound may be infinite: then there is none
        fields[f.name] = (f.type, Field(f.default, **infinite, **f.metadata))
    return create_model(name, __base__=Section, **fields)


def fields_of(section: str, method: str = METHOD) -> dict[str, FieldInfo]:
    """The settings of a section; of [method]: those of one method."""
    if section == "method":
        return method_model(method).model_fields if method in METHODS else {}
    field = Settings.model_fields.get(section)
    return getattr(field.annotation, "model_fields", {}) if field else {}


def field_of(place: str, method: str = METHOD) -> FieldInfo | None:
    """The field of "section.key", also of a source ("data.sources.0.folder"); None if there is none."""
    section, _, key = place.rpartition(".")
    return fields_of(section.partition(".")[0], method).get(key) if section else Settings.model_fields.get(key)


def every_setting() -> Iterator[tuple[str, FieldInfo]]:
    """("section.key", field) of every setting, method by method where they have their own."""
    for section in SECTIONS:
        for key, field in fields_of(section).items():
            yield f"{section}.{key}", field


def owners(key: str) -> list[str]:
    """The places of the settings called `key`."""
    return [place for place, _ in every_setting() if place.rpartition(".")[2] == key]
