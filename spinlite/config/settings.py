"""The settings of a run: frozen and validated. Each default is written once, here or in a method."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
