"""What a kind of base model is, as far as no torch is needed to say it: `kinds` lists one `Record` for each kind."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinlite.families.clip import TokenCounter
from spinlite.families.lora_facts import LoraFacts, Verdict
from spinlite.families.picture import ClipRule

Kind = str  # a key of `kinds.KINDS`
Shapes = Mapping[str, tuple[int, ...]]
Config = Callable[[str], Mapping[str, Any]]  # a part ("transformer", "vae", …) -> its settings
CONFIGS = Path(__file__).parent / "configs"  # where the published models' settings lie


@dataclass(frozen=True)
class Place:
    """Where a weight is in a file of the original layout: its key, and which third of the rows if three share a matrix."""

    key: str
    third: int | None = None


Native = Callable[[str], Place]


@dataclass(frozen=True)
class Geometry:
    """Sides of pictures, from the settings of a model's parts, in px."""

    side: Callable[[Config], int]  # of the model's own pictures
    factor: Callable[[Config], int]  # px for each number of a latent, along one side
    halved: Callable[[Config], int]  # every side is a multiple of this


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files for a kind name its modules, and who reads them. A full name is "unet." and the module of the network."""

    shapes: Callable[[], Shapes]  # of the published network's weights that a LoRA may change, by diffusers' module names
    keys: Callable[[Iterable[str]], Mapping[str, "str | tuple[str, ...]"]]  # modules -> {key in a file: full name}
    verdicts: Callable[[LoraFacts], list[Verdict]]  # what each program does with a file
    text_widths: Mapping[str, int]  # text encoders that a LoRA may change -> their width
    version: str = ""  # the beginning of ss_base_model_version in its headers
    architecture: str = ""  # modelspec.architecture of flow models, without "/lora"
    written: Callable[[str], str] = str  # of flow models: a module of the network -> its key in a file that spinlite writes


@dataclass(frozen=True)
class Files:
    """A flow model's parts in separate files, as ComfyUI and model sites have them."""

    mark: str  # a tensor of the network in its original layout, without a prefix
    native: Native  # a weight's name in diffusers -> where it is in the original layout
    swapped: Sequence[str]  # weights, by diffusers' names, whose two halves are the other way round there
    others: Mapping[str, str]  # the other parts that files hold -> what a published file is called
    is_part: Callable[[str, Shapes], bool]  # whether a file with these tensors is that part
    rename: Callable[[str, dict[str, Any]], dict[str, Any]]  # a part and its tensors -> the same by diffusers' names
    tokenizer: Callable[[str], Any]  # a tokenizer by its part's name, from what ships with spinlite
    counter: Callable[[], TokenCounter]  # counts the tokens of captions
    inside: Mapping[str, str] = field(default_factory=dict)  # parts in the network's own file -> how their names begin there
    vocabulary: str = ""  # the tensor of the text encoder's file that is its tokenizer; then what ships only stands in for it


@dataclass(frozen=True)
class Record:
    """A kind of base model. Functions that need torch are named as "module:name" and imported when they are called for."""

    title: str  # in words
    family: str  # the value of model.family
    made_by: str  # the class of the family
    configs: str  # the folder of the published model's settings, below `configs/`
    parts: Mapping[str, str]  # what is loaded, by diffusers' names -> its class, "diffusers.AutoencoderKL"
    net: str  # the part that learns
    net_title: str  # in words
    geometry: Geometry
    lora: LoraNames
    layout: str = "families.original"  # the module with `find_places` and `single_file_tensors` for whole files
    hub: Sequence[str] = ()  # hub ids of such models: nothing is fetched to plan with them
    is_file: Callable[[Shapes, Mapping[str, str]], bool] | None = None  # by the shapes and the header of a single file
    is_folder: Callable[[Mapping[str, Any]], bool] | None = None  # by the settings of the network
    note: str = ""  # what a user of such a base must know: its licence, where else its LoRA is used
    files: "Files | None" = None  # of flow models; None for a UNet
    distilled: Callable[[str, Config], str] | None = None  # (name, settings) -> what says that it is a distilled model, or ""
    clips: ClipRule | None = None  # which clips it makes; None: pictures alone

    @property
    def folder(self) -> Path:
        """Where the published model's settings lie."""
        return CONFIGS / self.configs

    @property
    def is_flow(self) -> bool:
        """Whether it is trained on the straight path between noise and picture, so that eps, v and alpha-bar mean nothing."""
        return self.files is not None

    def config(self, part: str) -> dict[str, Any]:
        """The published model's settings of a part."""
        return read_config(self.folder, part)


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The settings of a part of a model in diffusers' layout."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return json.loads((folder / part / name).read_text(encoding="utf-8"))
