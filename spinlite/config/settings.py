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

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from spinlite.config.presets import presets
from spinlite.errors import SpinliteError
from spinlite.maths.weights import Weight
from spinlite.methods.registry import METHODS, Method

METHOD = "spin"  # where [method] names none


class Section(BaseModel):
    """A table of a preset: immutable, and without room for unknown keys or numbers without end."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Section):
    base: str = "demo"  # a diffusers folder, a hub id, a single .safetensors file, or "demo"
    family: Literal["auto", "sd", "sdxl", "toy"] = "auto"  # "auto": read from the base
    prediction: Literal["auto", "eps", "v"] = "auto"  # "auto": as the base says
    zero_snr: bool | None = None  # whether the noise schedule ends in pure noise; none: as the base says
    vae: str | None = None  # another VAE than the base's: a diffusers folder, a hub id, or a single .safetensors file
    init_lora: str | None = None  # a LoRA file to start from: the first opponent is the base with it
    targets: Literal["linear", "all"] = "linear"  # attention and feed-forward layers, or the convolutions too
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0)  # the LoRA's scale is alpha / rank; none: alpha = rank
    rslora: bool = False  # the scale is alpha / sqrt(rank) instead: high ranks learn as fast as low ones
    dora: bool = False  # learn each output's magnitude beside its direction; exported as a plain LoRA


class Source(Section):
    """Where pictures and their captions come from, and what is done with the captions."""

    folder: str | None = None  # pictures with captions beside them; "demo" is the embedded set
    recursive: bool = False  # its subfolders too
    dataset: str | None = None  # instead of a folder: a data set of the hub by its id, or a folder or file of one
    subset: str | None = None  # of a data set that has several
    split: str = "train"  # of a data set
    image_column: str | None = None  # none: the only one with pictures; of Pick-a-Pic the one that was preferred
    caption_column: str | None = None  # none: caption, captions, text, prompt or tags, or the only one with text
    limit: int | None = Field(default=None, ge=1)  # rows of a data set that are read at the most; none: all
    weight: float = Field(default=1.0, gt=0, le=1000)  # how often each picture is shown, against those of other sources
    trigger: str = ""  # words put in front of every caption
    lines: Literal["join", "each"] = "join"  # several lines in a .txt are one caption, or a caption each
    uncaptioned: Literal["skip", "name", "fixed", "error"] = "skip"  # no caption: leave out, file name, `caption`, stop
    caption: str = ""  # of pictures without one, where uncaptioned = "fixed"


class Data(Source):
    sources: list[Source] = []  # further ones, each a [[data.sources]]
    background: str = "white"  # the colour that transparency is laid on, by name or as #rrggbb
    buckets: bool = True  # pictures keep their aspect ratio, nearly; or all get the model's own size
    upscale: float = Field(default=1.5, ge=1, le=16)  # how much a picture may be enlarged; smaller ones get smaller shapes
    crop: Literal["centre", "random"] = "centre"  # which part of a picture is kept where its shape differs
    flip: bool = False  # show pictures mirrored too, in turn
    latents: Literal["mean", "sample"] = "mean"  # what the VAE says of a picture: the mean, or one sample of its distribution
    heldout: float = Field(default=0.1, gt=0, lt=0.9)  # share of the captions that is measured, never trained on
    max_unusable: float = Field(default=0.1, ge=0, le=1)  # share of pictures that may be unreadable before the run stops


class Play(Section):
    sampler: str = "dpm++"  # or ddim, euler, euler-a, heun, unipc, ddpm, lcm, tcd, or the class name of another of diffusers'
    steps: int = Field(default=20, ge=1, le=1000)
    eta: float = Field(default=0.0, ge=0, le=1)  # of ddim and tcd: 0 deterministic, 1 as much noise as the forward process
    guidance: float = Field(default=3.0, ge=1, le=50)  # 1 is off; play at the guidance you will sample with
    guidance_low: float = Field(default=0.0, ge=0, le=1)  # guidance acts between these times (0 clean, 1 noise)
    guidance_high: float = Field(default=1.0, ge=0, le=1)
    points: int = Field(default=0, ge=0, le=1000)  # kept of each path for the exact objective; 0: fakes are noised again


class Draw(Section):
    """At which times and noise samples are met, and what that counts: for every method alike."""

    weight: Weight = "constant"  # of an error at its time; or "min-snr", or "transition": that of a step's density
    low: float = Field(default=0.0, ge=0, lt=1)  # times from here (0 clean) ..
    high: float = Field(default=1.0, gt=0, le=1)  # .. to here (1 noise)
    noise: Literal["shared", "separate"] = "shared"  # by real and fake, or each its own

    @model_validator(mode="after")
    def _in_order(self) -> "Draw":
        if self.low >= self.high:
            raise ValueError("should have low below high")
        return self


class Learn(Section):
    updates: int = Field(default=100, ge=1)  # optimizer steps a round
    batch: int = Field(default=16, ge=1)  # samples (or pairs) an update
    lr: float | None = Field(default=None, gt=0, le=1)  # none: 3e-4, for prodigy 1 (a factor)
    optimizer: Literal["adamw8bit", "adamw", "schedulefree", "prodigy"] = "adamw8bit"
    aim: float = Field(default=0.0, ge=0, lt=0.5)  # what a typical pair shall count: beta is found, not set; 0: method.beta
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of samples that learn without caption (for guidance)
    snapshot_every: int = Field(default=0, ge=0)  # updates between snapshots within a round, for a random reference; 0: none


    @property
    def rate(self) -> float:
        """The learning rate at its height. Prodigy's is a factor on the one that it finds."""
        return self.lr or (1.0 if self.optimizer == "prodigy" else 3e-4)


class Memory(Section):
    """How a run is fitted into memory. What is none is chosen by the plan: the fastest that fits."""

    vram: float | None = Field(default=None, gt=0)  # GB that the run may take; none: what the card has free
    precision: Literal["bf16", "fp16", "fp32"] | None = None  # of the frozen base; LoRA and losses are fp32
    quantize: Literal["none", "int8", "nf4"] | None = None  # linear layers of the frozen base in 8 or 4 bits
    attention: Literal["sdpa", "xformers"] | None = None
    checkpointing: bool | None = None  # keep one block's activations at a time, and compute them again going back
    one_graph: bool | None = None  # one activation graph at a time: the activations of plain LoRA training, 16 % more work
    cache_opponent: bool | None = None  # measure the opponent's errors once, ahead of learning
    micro_batch: int | None = Field(default=None, ge=1)  # samples that go through the network at once while learning
    play_batch: int | None = Field(default=None, ge=1)  # the same for play, encoding and judging
    channels_last: bool | None = None
    compile: bool | None = None  # torch.compile of repeated blocks: minutes at the start, faster from then on
    merge: bool | None = None  # play with the opponent's LoRA merged into the base


class Judge(Section):
    draws: int = Field(default=8, ge=1)  # (t, noise) a held-out sample, the same in every round
    prompts: int = Field(default=6, ge=1, le=32)  # rows of the sample sheet
    stop: bool = True  # guards: end a round that is won, undo one that goes wrong, and end the run with its best snapshot


class Run(Section):
    rounds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class Settings(Section):
    """Everything a run depends on."""

    about: str = ""
    model: Model = Model()
    data: Data = Data()
    method: dict[str, Any] = {"name": METHOD}
    play: Play = Play()
    draw: Draw = Draw()
    learn: Learn = Learn()
    judge: Judge = Judge()
    memory: Memory = Memory()
    run: Run = Run()

    def build_method(self) -> Method:
        """The method of [method], with its settings."""
        fields = dict(self.method)
        return METHODS[fields.pop("name")](**fields)


def load_settings(preset: str, overrides: Iterable[str] = (), **direct: Any) -> Settings:
    """Settings from a shipped preset's name or a TOML file's path, with `section.key=value` overrides.

    `direct` are further overrides as `section__key=value`; None leaves the preset's.
    Raises SpinliteError for anything unknown, of the wrong type or out of range.
    """
    tree = _read(preset)
    asked: dict[str, dict[str, Any]] = {}
    for text in overrides:
        place, found, value = text.partition("=")
        section, dot, key = place.strip().partition(".")
        if not (found and dot) or "." in key:
            raise SpinliteError(f"--set {text!r} is not section.key=value", fix="e.g. --set learn.updates=200")
        asked.setdefault(section, {})[key] = _value(value.strip())
    for place, value in direct.items():
        section, _, key = place.partition("__")
        if value is not None:
            asked.setdefault(section, {})[key] = value
    for section, values in asked.items():
        _merge(tree, section, values, "--set")
    return validate_settings(tree)


def validate_settings(tree: Mapping[str, Any]) -> Settings:
    """A tree as TOML gives it -> Settings with every default written out."""
    try:
        settings = Settings.model_validate(tree)
        name = settings.method.get("name", METHOD)
        if not isinstance(name, str) or name not in METHODS:
            raise SpinliteError(f"unknown method {name!r}", fix=_nearest(str(name), METHODS))
        values = _method_model(name).model_validate(settings.method | {"name": name})
    except ValidationError as error:
        raise _explain(error) from None
    learn = settings.learn
    finds = learn.optimizer == "prodigy"
    if learn.lr and (learn.lr < 0.1 if finds else learn.lr == 1):
        takes = "finds the rate itself: its lr is a factor on that, 1 unless it diverges" if finds else "takes far less"
        fix = f"set learn.lr = {1 if finds else 3e-4}"
        raise SpinliteError(f"learn.lr = {learn.lr:g}, but {learn.optimizer} {takes}", fix=fix)
    return settings.model_copy(update={"method": values.model_dump()})


@cache
def _method_model(name: str) -> type[BaseModel]:
    fields: dict[str, Any] = {"name": (str, name)}
    for f in dataclasses.fields(METHODS[name]):
        endless = {"allow_inf_nan": True} if f.name == "bound" else {}  # the one number that may be inf: no bound
        fields[f.name] = (f.type, Field(f.default, **endless, **f.metadata))
    return create_model(name, __base__=Section, **fields)


def _read(preset: str, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    known = presets()
    path = known.get(preset) or (extended_by[-1].parent if extended_by else Path()) / preset
    if not path.is_file():
        child = f" (which {extended_by[-1]} extends)" if extended_by else ""
        raise SpinliteError(f"no preset {preset!r}{child}", fix=_nearest(preset, known) + " (`spinlite presets` lists them)")
    path = path.resolve()
    if path in extended_by:
        raise SpinliteError(f"{path} extends itself", fix="remove one `extends` of the circle")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpinliteError(f"{path} is not valid TOML: {error}", fix="mend that line of the preset") from None
    parent = tree.pop("extends", None)
    if not isinstance(parent, str | None):
        raise SpinliteError(f"extends = {parent!r} in {path} names no preset", fix='write one name or path: extends = "demo"')
    base = _read(parent, (*extended_by, path)) if parent is not None else {}
    if "about" in tree:
        base["about"] = tree.pop("about")
    for section, values in tree.items():
        _merge(base, section, values, str(path))
    return base


def _merge(tree: dict[str, Any], section: str, values: Any, source: str) -> None:
    """Put a section's values over those of a tree; settings of another method give way."""
    sections = [name for name in Settings.model_fields if name != "about"]
    if section not in sections:
        raise SpinliteError(f"unknown section [{section}] in {source}", fix=_nearest(section, sections))
    if not isinstance(values, dict):
        raise SpinliteError(f"{section} = {values!r} in {source} is not a section", fix=f"write [{section}] and its keys below")
    under = tree.get(section, {})
    if section == "method" and values.get("name", under.get("name", METHOD)) != under.get("name", METHOD):
        under = {}
    tree[section] = under | values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> SpinliteError:
    first = error.errors()[0]
    place = [*(["method"] if error.title in METHODS else []), *map(str, first["loc"])]
    key, section = place[-1], place[0] if len(place) > 1 else ""
    if first["type"] == "extra_forbidden":
        return _unknown(key, section, error.title)
    said = first["msg"].replace("Input should", "should")
    where = f"[{section}]" if section else "the preset"
    return SpinliteError(f"{key} = {first['input']!r} in {where} {said}", fix=f"set {'.'.join(place)} to such a value")


def _unknown(key: str, section: str, method: str) -> SpinliteError:
    owners = [name for name in METHODS if key in _method_model(name).model_fields]
    if section == "method" and owners:
        return SpinliteError(f"{method} has no setting {key!r}", fix=f"remove it, or set method.name to {' or '.join(owners)}")
    model = _method_model(method) if section == "method" else Settings.model_fields[section].annotation if section else Settings
    known = getattr(model, "model_fields", {})
    return SpinliteError(f"unknown key {key!r} in {f'[{section}]' if section else 'the preset'}", fix=_nearest(key, known))


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
