"""The settings of a run: frozen and validated. Each default is written once: here, or in its method."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from spinlite.config.field_types import PathText, Section, Texts, Trackers
from spinlite.errors import SpinliteError
from spinlite.maths.kinds import Times, Weight
from spinlite.methods.registry import METHODS, Method

METHOD = "spin"  # if [method] has no name
Targets = Literal["linear", "all", "motion"]  # which layers of a network learn
MOTION = "guoyww/animatediff-motion-adapter-v1-5-3"  # the newest motion module of AnimateDiff's authors


class Model(Section):
    base: PathText = "demo"  # a diffusers folder, a hub id, a single .safetensors file, or "demo"
    family: str = "auto"  # "auto": recognised from the base; or the name of a family, such as sd or sdxl
    prediction: Literal["auto", "eps", "v"] = "auto"  # "auto": as the base model says
    zero_snr: bool | None = None  # zero terminal SNR: the noise schedule ends in pure noise; none: as the base model says
    vae: PathText | None = None  # a VAE to use instead of the base's: a diffusers folder, a hub id or a .safetensors file
    text_encoder: PathText | None = None  # the text encoder of a base that is the network alone: a .safetensors file or folder
    init_lora: PathText | None = None  # a LoRA file to start from: the first opponent is the base with this LoRA
    targets: Targets = "linear"  # "linear": attention and feed-forward layers; "all": convolutions too; "motion": model.motion
    rank: int = Field(default=16, ge=1, le=1024)  # size of the LoRA (dim): more can be learned, and the file grows
    alpha: float | None = Field(default=None, gt=0, examples=[16])  # the LoRA's scale is alpha / rank; none: alpha = rank
    rslora: bool = False  # scale = alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones
    dora: bool = False  # also learn magnitudes (DoRA); exported as a plain LoRA, which loses a part of it
    resolution: int | None = Field(default=None, ge=16, le=4096, examples=[768])  # px a side; none: the base's own size
    clip_skip: int | None = Field(default=None, ge=1, le=12)  # 1: the last layer of CLIP is read, 2: the one before it, …
    frames: int | None = Field(default=None, ge=1, le=1000, examples=[33])  # of a clip, at the most; none: the base's own
    max_tokens: Literal[75, 150, 225] = 225  # longer captions are cut; above 75 they are encoded in chunks, as WebUIs do
    motion: PathText | None = Field(default=None, examples=[MOTION])  # AnimateDiff's motion module: SD 1.x then makes clips

    @model_validator(mode="after")
    def _motion_needs_its_module(self) -> "Model":
        if self.targets == "motion" and self.motion is None:
            problem = "model.targets = 'motion' teaches a motion module, and model.motion names none"
            raise SpinliteError(problem, fix=f"add --set model.motion={MOTION}, or --set model.targets=linear")
        return self


class Source(Section):
    """Where pictures and captions come from, and how captions are used."""

    folder: PathText | None = Field(default=None, examples=["my-pictures"])  # pictures with .txt captions; or "demo"
    recursive: bool = False  # also use its subfolders
    dataset: PathText | None = None  # instead of a folder: a data set's hub id, or a local folder or file of one
    subset: str | None = None  # if the data set has several
    split: str = "train"  # which split of a data set
    image_column: str | None = None  # none: the only column with pictures; in Pick-a-Pic the preferred picture
    caption_column: str | None = None  # none: caption, captions, text, prompt or tags, or the only column with text
    limit: int | None = Field(default=None, ge=1, examples=[1000])  # how many rows of a data set to read at most; none: all
    weight: float = Field(default=1.0, gt=0, le=1000)  # repeats: how often each picture is shown, relative to other sources
    trigger: str = ""  # trigger words, put in place of [trigger] in a caption, or as a tag in front
    lines: Literal["join", "each"] = "join"  # lines of a .txt: joined into one caption, or a caption each
    uncaptioned: Literal["skip", "name", "fixed", "error"] = "skip"  # without caption: left out; stop; `caption`; the file name
    caption: str = ""  # the caption for pictures without one, with uncaptioned = "fixed"
    shuffle: bool = False  # shuffle captions: the tags between commas come in another order each time a picture is learned
    keep_tokens: int = Field(default=0, ge=0)  # how many tags at the start stay as they are; the trigger always does
    tag_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of the other tags that is left out each time
    mask_folder: PathText | None = None  # masks by the pictures' names: white is learned; none: NAME-masklabel.png beside it
    alpha_mask: bool = False  # a picture's transparency is its mask: what is transparent is not learned


class Data(Source):
    sources: list[Source] = Field(default=[])  # more sources, each written as [[data.sources]]
    background: str = "white"  # the colour behind transparent pictures, by name or as #rrggbb
    buckets: bool = True  # aspect ratio bucketing; false: every picture is cropped to the model's own size
    upscale: float = Field(default=1.5, ge=1, le=16)  # how much a picture may be enlarged; smaller pictures get smaller shapes
    crop: Literal["centre", "random"] = "centre"  # which part of a picture is kept if its shape differs from its bucket
    flip: bool = False  # also show every picture mirrored, in turn
    latents: Literal["mean", "sample"] = "mean"  # the VAE's latent of a picture: the mean of its distribution, or one sample
    heldout: float = Field(default=0.1, gt=0, lt=0.9)  # validation: share that is measured, never trained on; at least 4 of 12
    max_unusable: float = Field(default=0.1, ge=0, le=1)  # the run stops if a larger share of pictures is unreadable
    unmasked_weight: float = Field(default=0.0, ge=0, le=1)  # what counts where a mask is black: 0 nothing, 1 as much as white
    fps: float | None = Field(default=None, gt=0, le=240, examples=[16])  # frames a second of clips; none: the base's own
    long_clips: Literal["head", "all"] = "head"  # a longer clip: "head": its beginning is used; "all": cut into several


class Play(Section):
    sampler: str = "dpm++"  # or ddim, euler, euler-a, heun, unipc, ddpm, lcm, tcd, or a scheduler class of diffusers
    steps: int = Field(default=20, ge=1, le=1000)  # sampling steps for each fake
    spacing: Literal["trailing", "linspace", "karras"] = "trailing"  # where the steps lie; all begin at the last time
    eta: float = Field(default=0.0, ge=0, le=1)  # for ddim and tcd: 0 is deterministic, 1 adds the noise of the forward process
    guidance: float = Field(default=1.0, ge=1, le=50)  # CFG scale of fakes; 1 is off: they are what the model itself draws
    guidance_low: float = Field(default=0.0, ge=0, le=1)  # guidance acts from this time on (0 clean, 1 noise)
    guidance_high: float = Field(default=1.0, ge=0, le=1)  # guidance acts up to this time
    points: int = Field(default=0, ge=0, le=1000)  # points kept per sampling path (exact objective); 0: noise fakes again
    start: float = Field(default=1.0, gt=0, le=1)  # noise that fakes begin with: 1 alone; below 1 your picture shows through

    @property
    def identity(self) -> dict[str, Any]:
        """All of it, for names of what is made with it."""
        return self.model_dump(exclude={"start"} if self.start == 1 else None)  # as before there was a start


class Draw(Section):
    """Timestep and noise sampling, and the weight of a timestep. The same for every method."""

    weight: Weight = "constant"  # of an error, by its timestep; transition: the density of a sampling step
    low: float = Field(default=0.0, ge=0, lt=1)  # times are drawn from here (0 clean, 1 noise)
    high: float = Field(default=1.0, gt=0, le=1)  # times are drawn up to here
    noise: Literal["shared", "separate"] = "shared"  # real and fake get the same noise, or each its own
    times: Times = "uniform"  # how times are spread: evenly, or most of them in the middle (logit-normal, sigmoid)
    shift: float | None = Field(default=None, gt=0, le=100, examples=[3])  # above 1: more noise; none: as the family is trained

    @field_validator("high")
    @classmethod
    def _in_order(cls, high: float, others: ValidationInfo) -> float:
        if high <= (low := others.data.get("low", 0.0)):
            raise ValueError(f"should be above low, which is {low:g}")
        return high


class Learn(Section):
    updates: int | None = Field(default=None, ge=1, examples=[100])  # optimizer steps per round; none: see learn.epochs
    batch: int = Field(default=16, ge=1)  # batch size: samples (or pairs) per step
    lr: float | None = Field(default=None, gt=0, le=1, examples=[1e-4])  # learning rate; none: 3e-4; 1 for prodigy
    optimizer: Literal["adamw8bit", "adamw", "schedulefree", "prodigy"] = "adamw8bit"  # prodigy finds the learning rate itself
    aim: float = Field(default=0.0, ge=0, lt=0.5)  # weight of a typical pair, for which beta is found; 0: method.beta
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of samples that learn without caption (for CFG)
    snapshot_every: int = Field(default=0, ge=0)  # steps between extra snapshots in a round, for a random reference; 0: none
    epochs: float | None = Field(default=None, gt=0, examples=[10])  # times a round shows each picture; none: 32, or updates
    ema: float = Field(default=0.0, ge=0, lt=1, examples=[0.99])  # a round saves its weights' average (EMA); 0: the last ones

    @property
    def length(self) -> int:
        """The optimizer steps of a round. They are known once the pictures are counted (`config/rounds.py:with_pictures`)."""
        if self.updates is None:
            raise ValueError("the pictures are not counted yet")
        return self.updates

    @property
    def rate(self) -> float:
        """The learning rate at its peak. For prodigy: a factor on the rate that it finds."""
        return self.lr or (1.0 if self.optimizer == "prodigy" else 3e-4)


class Memory(Section):
    """How a run fits into memory. The plan chooses what is not set: the fastest way that fits."""

    vram: float | None = Field(default=None, gt=0, examples=[12])  # GB (2^30 bytes) that the run may use; none: what is free
    precision: Literal["bf16", "fp16", "fp32"] | None = None  # precision of the frozen base; LoRA and losses are always fp32
    quantize: Literal["none", "int8", "nf4"] | None = None  # linear layers of the base in 8 or 4 bits; none: at full size
    attention: Literal["sdpa", "xformers"] | None = None  # how attention is computed: sdpa is PyTorch's own
    checkpointing: bool | None = None  # gradient checkpointing: less VRAM, since activations are computed again
    one_graph: bool | None = None  # one activation graph at a time: activations as of plain LoRA training, a sixth more work
    cache_opponent: bool | None = None  # measure the opponent's errors once, before learning
    micro_batch: int | None = Field(default=None, ge=1, examples=[1])  # samples at once; steps stay learn.batch
    play_batch: int | None = Field(default=None, ge=1, examples=[4])  # pictures per batch for play, encoding and judging
    channels_last: bool | None = None  # another order of numbers in memory, which is faster on some cards
    compile: bool | None = None  # torch.compile of repeated blocks: takes minutes at the start, then runs faster
    merge: bool | None = None  # merge the opponent's LoRA into the base while it plays or is measured ahead
    encoders: Literal["none", "int8", "nf4", "cpu"] | None = None  # text encoders in 8 or 4 bits, or on the CPU; none: as is


class Judge(Section):
    draws: int = Field(default=8, ge=1)  # draws (t, noise) per held-out sample, the same in every round; more if these are few
    captions: int = Field(default=12, ge=1, le=48)  # pictures in each panel of the sample sheet, of held-out captions
    guidance: float = Field(default=3.0, ge=1, le=50)  # CFG scale of what you look at: use the one that you will sample with
    stop: bool = True  # guards: end a round that is won, undo a round that goes wrong, and stop a run that gets worse
    prompts: Texts = Field(default=[], examples=["@prompts.txt"])  # your own, drawn each round; @FILE: its lines

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, given: Any) -> Any:
        """`captions` was called `prompts` when there were no prompts of one's own."""
        if isinstance(given, dict) and type(given.get("prompts")) is int:
            given = {"captions": given["prompts"]} | {name: value for name, value in given.items() if name != "prompts"}
        return given


class Run(Section):
    rounds: int = Field(default=3, ge=1)  # rounds of self-play in all, finished ones included
    seed: int = Field(default=0, ge=0, lt=2**63)  # another seed draws other noise, and holds out other pictures


class Report(Section):
    trackers: Trackers = Field(default=[], examples=["tensorboard"])  # figures and sheets go there too: tensorboard, wandb, …
    on_end: str = Field(default="", examples=["notify"])  # when the run ends: "notify" (on the desktop), or a command


class Settings(Section):
    """Everything that a run depends on."""

    about: str = ""  # what the preset is for, in a line
    model: Model = Model()
    data: Data = Data()
    method: dict[str, Any] = Field(default={"name": METHOD})
    play: Play = Play()
    draw: Draw = Draw()
    learn: Learn = Learn()
    judge: Judge = Judge()
    memory: Memory = Memory()
    run: Run = Run()
    report: Report = Report()

    @model_validator(mode="after")
    def _points_need_whole_paths(self) -> "Settings":
        if self.play.points and self.play.start < 1:
            problem = f"play.points needs paths from pure noise, but play.start = {self.play.start:g}"
            raise SpinliteError(problem, fix="add --set play.points=0, or --set play.start=1")
        return self

    @model_validator(mode="after")
    def _points_need_captions_as_written(self) -> "Settings":
        if self.play.points and any(source.shuffle or source.tag_dropout for source in (self.data, *self.data.sources)):
            problem = "play.points needs captions as written, but data.shuffle or data.tag_dropout is on"
            raise SpinliteError(problem, fix="add --set play.points=0, or --set data.shuffle=false --set data.tag_dropout=0")
        return self

    @property
    def drawn(self) -> Play:
        """How pictures to look at are drawn: as fakes, but from noise alone, without points, and at judge.guidance."""
        return self.play.model_copy(update={"points": 0, "start": 1.0, "guidance": self.judge.guidance})

    def build_method(self) -> Method:
        """The method that [method] names, with its settings."""
        fields = dict(self.method)
        return METHODS[fields.pop("name")](**fields)
