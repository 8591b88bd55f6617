"""Presets: TOML in, frozen and validated settings out.

Each default is written once, here or in a method. A key that is unknown, of the wrong type or out of range is refused
with its place and the one thing to do.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from spinlite.errors import SpinliteError
from spinlite.methods import METHODS, Method

PACKAGE = Path(__file__).parent


class Section(BaseModel):
    """A table of a preset: immutable, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Section):
    base: str = "demo"  # a diffusers folder, a hub id, a single .safetensors file, or "demo"
    family: Literal["auto", "sd", "sdxl", "toy"] = "auto"  # "auto": read from the base
    prediction: Literal["auto", "eps", "v"] = "auto"  # "auto": as the base says
    zero_snr: bool | None = None  # whether the noise schedule ends in pure noise; none: as the base says
    vae: str | None = None  # another VAE than the base's: a diffusers folder, a hub id, or a single .safetensors file
    targets: Literal["linear", "all"] = "linear"  # attention and feed-forward layers, or the convolutions too
    rank: int = Field(16, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0)  # the LoRA's scale is alpha / rank; none: alpha = rank
    rslora: bool = False  # the scale is alpha / sqrt(rank) instead: high ranks learn as fast as low ones
    dora: bool = False  # learn each output's magnitude beside its direction; can't be exported yet


class Data(Section):
    folder: str | None = None  # pictures with .txt captions beside them; "demo" is the embedded set
    heldout: float = Field(0.1, gt=0, lt=0.9)  # share of the captions that is measured, never trained on
    uncaptioned: Literal["skip", "name", "error"] = "skip"  # a picture without caption: leave out, take its file name
    max_unusable: float = Field(0.1, ge=0, le=1)  # share of pictures that may be unreadable before the run stops


class Play(Section):
    sampler: Literal["dpm++", "ddim", "euler"] = "dpm++"
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(3.0, ge=1, le=50)  # 1 is off; play at the guidance you will sample with
    batch: int = Field(16, ge=1)


class Learn(Section):
    updates: int = Field(100, ge=1)  # optimizer steps a round
    batch: int = Field(16, ge=1)  # samples (or pairs) an update
    lr: float = Field(3e-4, gt=0, lt=1)
    optimizer: Literal["adamw8bit", "adamw"] = "adamw8bit"
    one_graph: bool = False  # one activation graph at a time: the memory of plain LoRA training, a third more time
    caption_dropout: float = Field(0.1, ge=0, lt=1)  # share of samples that learn without caption (for guidance)


class Judge(Section):
    draws: int = Field(8, ge=1)  # (t, noise) a held-out sample, the same in every round
    prompts: int = Field(6, ge=1, le=32)  # rows of the sample sheet
    stop: bool = True  # end the run, and keep the best snapshot, when the held-out error on real grows


class Run(Section):
    rounds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)


class Settings(Section):
    """Everything a run depends on."""

    about: str = ""
    model: Model = Model()
    data: Data = Data()
    method: dict[str, Any] = {"name": "spin"}
    play: Play = Play()
    learn: Learn = Learn()
    judge: Judge = Judge()
    run: Run = Run()

    def build_method(self) -> Method:
        """The method of [method], with its settings."""
        fields = dict(self.method)
        return METHODS[fields.pop("name")](**fields)


def presets() -> dict[str, Path]:
    """Shipped presets by name, in order."""
    here = PACKAGE / "presets"  # in a wheel; in a checkout they stand beside the package
    folder = here if here.is_dir() else PACKAGE.parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(preset: str, overrides: Iterable[str] = (), **direct: Any) -> Settings:
    """Settings from a shipped preset's name or a TOML file's path, with `section.key=value` overrides.

    `direct` are further overrides as `section__key=value`; None leaves the preset's.
    Raises SpinliteError for anything unknown, of the wrong type or out of range.
    """
    tree = _read(preset)
    for text in overrides:
        place, found, value = text.partition("=")
        if not found or place.count(".") != 1:
            raise SpinliteError(f"--set {text!r} is not section.key=value", fix="e.g. --set learn.updates=200")
        _put(tree, place.strip(), _value(value.strip()))
    for place, value in direct.items():
        if value is not None:
            _put(tree, place.replace("__", "."), value)
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Settings:
    """A tree as TOML gives it -> Settings with every default written out."""
    try:
        settings = Settings.model_validate(tree)
        name = settings.method.get("name", "spin")
        if name not in METHODS:
            raise SpinliteError(f"unknown method {name!r}", fix=_nearest(str(name), METHODS))
        values = _method_model(name).model_validate(settings.method | {"name": name})
    except ValidationError as error:
        raise _explain(error) from None
    return settings.model_copy(update={"method": values.model_dump()})


@cache
def _method_model(name: str) -> type[BaseModel]:
    fields: dict[str, Any] = {"name": (str, name)}
    for f in dataclasses.fields(METHODS[name]):
        fields[f.name] = (f.type, Field(f.default, **f.metadata))
    return create_model(name, __base__=Section, **fields)


def _read(preset: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    known = presets()
    path = known.get(preset) or Path(preset)
    if not path.is_file():
        raise SpinliteError(f"no preset {preset!r}", fix=_nearest(preset, known) + " (`spinlite presets` lists them)")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpinliteError(f"{path} is not valid TOML: {error}", fix="mend that line of the preset") from None
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if parent in seen:
        raise SpinliteError(f"{path} extends itself through {parent!r}", fix="remove one `extends` of the circle")
    base = _read(parent, (*seen, preset))
    if "name" in tree.get("method", {}):
        base.pop("method", None)  # another method has other settings
    for key, value in tree.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return base


def _put(tree: dict[str, Any], place: str, value: Any) -> None:
    section, key = place.split(".")
    if section not in Settings.model_fields or section == "about":
        raise SpinliteError(f"unknown section [{section}]", fix=_nearest(section, Settings.model_fields))
    if place == "method.name" and value != tree.get("method", {}).get("name"):
        tree["method"] = {}
    tree.setdefault(section, {})[key] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> SpinliteError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key, section = place[-1], place[0] if len(place) > 1 else ""
    if error.title in METHODS:
        section, known = "method", list(_method_model(error.title).model_fields)
    elif section:
        known = list(getattr(Settings.model_fields[section].annotation, "model_fields", {}))
    else:
        known = list(Settings.model_fields)
    where = f"[{section}]" if section else "the preset"
    if first["type"] == "extra_forbidden":
        return SpinliteError(f"unknown key {key!r} in {where}", fix=_nearest(key, known))
    said = first["msg"].replace("Input should", "should")
    return SpinliteError(f"{key} = {first['input']!r} in {where} {said}", fix=f"set {section}.{key} to such a value")


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
