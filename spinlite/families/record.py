"""What a kind of base model is, as far as no torch is needed to say it: `kinds` lists one `Record` for each kind."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinlite.families.lora_facts import LoraFacts, Verdict

Kind = str  # a key of `kinds.KINDS`
Shapes = Mapping[str, tuple[int, ...]]
Config = Callable[[str], Mapping[str, Any]]  # a part ("transformer", "vae", …) -> its settings
CONFIGS = Path(__file__).parent / "configs"  # where the published models' settings lie


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
    layout: str = "families.original"  # the module that knows where weights are in a whole file: `find_places` and so on
    hub: Sequence[str] = ()  # hub ids of such models: nothing is fetched to plan with them
    is_file: Callable[[Shapes, Mapping[str, str]], bool] | None = None  # by the shapes and the header of a single file
    is_folder: Callable[[Mapping[str, Any]], bool] | None = None  # by the settings of the network
    note: str = ""  # what a user of such a base must know: its licence, where else its LoRA is used

    @property
    def folder(self) -> Path:
        """Where the published model's settings lie."""
        return CONFIGS / self.configs

    def config(self, part: str) -> dict[str, Any]:
        """The published model's settings of a part."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads((self.folder / part / name).read_text(encoding="utf-8"))
