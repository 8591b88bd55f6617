"""AnimateDiff's motion module, and an SD 1.x with one in it, before they are loaded. Only safetensors are opened."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from spinlite.config.settings import MOTION
from spinlite.errors import SpinliteError
from spinlite.families import record
from spinlite.families.blank import BLANK, fill_weights
from spinlite.families.checkpoint import KINDS, PICKLES, Checkpoint, load_pretrained, locate, require_sound, require_whole
from spinlite.families.folder_check import check_index, is_index
from spinlite.families.hub import answers, cached_folder
from spinlite.families.motion_kinds import ADAPTER, ANIMATED, HUB, motion_layers, original_motion_name
from spinlite.families.picture import ClipRule
from spinlite.families.single_file import read_header
from spinlite.families.unet_kinds import SD1
from spinlite.runs.files import fingerprint, fingerprint_files

if TYPE_CHECKING:
    import torch

FIX = f"add --set model.motion={MOTION}"
PICKLED = {"mm_sd_v15.": "guoyww/animatediff-motion-adapter-v1-5", "mm_sd_v15_v2.": "guoyww/animatediff-motion-adapter-v1-5-2"}
LENGTH = "motion_max_seq_length"  # frames, at the most
MIDDLE = "use_motion_mid_block"
PLACES = (".pos_encoder.pe", ".pos_embed.pe")  # (1, frames, width), in a file


class MotionModule:
    """A folder or hub id of diffusers' MotionAdapter, or a file as its authors publish it. It is checked when it is opened.

    "blank:" and one of these is the same with random weights. `config` are its settings, as diffusers names them.
    """

    def __init__(self, place: str) -> None:
        """Raises SpinliteError if it can't be reached or is no motion module for SD 1.x."""
        self.name = place.removeprefix(BLANK)
        self._blank = place != self.name
        _refuse_pickle(Path(self.name))
        published = record.read_config(record.CONFIGS / SD1.configs, ADAPTER)
        if self._blank and self.name in HUB:
            self._place, self.config = "", published | HUB[self.name]
            return
        self._place = locate(self.name, "model.motion")
        self._is_file = self._place.lower().endswith(".safetensors")
        on_hub = not self._is_file and not Path(self._place).is_dir()
        if on_hub and not answers(self.name, "model.motion"):
            self._place = str(cached_folder(self.name, ["config.json"], "model.motion"))
        self._named = on_hub  # files of the hub's cache have other names on every computer
        self.config = published | (self._read_shapes() if self._is_file else self._read_config())
        if self.config["conv_in_channels"]:
            raise SpinliteError(f"{self.name} needs a picture to begin with (PIA)", fix=FIX)

    def load(self, dtype: "torch.dtype") -> Any:
        """The MotionAdapter, on the CPU. Raises SpinliteError if it can't be read or is incomplete."""
        from accelerate import init_empty_weights
        from diffusers import MotionAdapter

        made: Any = MotionAdapter
        if self._blank:
            with init_empty_weights(include_buffers=False):
                model = made.from_config(self.config)
            return fill_weights(model, dtype).to(dtype)
        model = _explain(self.name, lambda: self._load_file(made, dtype) if self._is_file else self._load_folder(made, dtype))
        return require_sound(self.name, "motion module", require_whole(self.name, "motion module", model))

    def fingerprint(self) -> str:
        """A hash of its weights; of its name if they are on the hub."""
        if self._blank or self._named:
            return fingerprint(self.name)
        place = Path(self._place)
        return fingerprint_files([place] if self._is_file else sorted((place / self._within).glob("*.safetensors")))

    def _read_shapes(self) -> dict[str, Any]:
        """The settings of a file, which has none written down, by the shapes of its tensors."""
        path = Path(self._place)
        if not path.is_file():
            raise SpinliteError(f"there is no file {self.name}", fix=f"check model.motion, or {FIX}")
        shapes, _ = read_header(path)
        config = {MIDDLE: any(key.startswith("mid_block.") for key in shapes)}
        published = record.read_config(record.CONFIGS / SD1.configs, ADAPTER) | config
        for module, shape in motion_layers(published):
            found = shapes.get(f"{original_motion_name(module)}.weight") or shapes.get(f"{module}.weight")
            if found != shape:
                what = f"it has no {module} of {' x '.join(map(str, shape))} numbers"
                raise SpinliteError(f"{self.name} is no motion module for {SD1.title}: {what}", fix=FIX)
        lengths = {shape[-2] for key, shape in shapes.items() if key.endswith(PLACES) and len(shape) == 3}
        return config | ({LENGTH: min(lengths)} if lengths else {})

    def _read_config(self) -> dict[str, Any]:
        config = _explain(self.name, lambda: json.loads(self._config_file().read_text(encoding="utf-8")))
        if not isinstance(config, dict) or config.get("_class_name") != "MotionAdapter":
            raise SpinliteError(f"{self.name} is no motion module: its config.json is of something else", fix=FIX)
        return config

    def _config_file(self) -> Path:
        if Path(self._place).is_dir():
            return Path(self._place) / self._within / "config.json"
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self._place, "config.json"))

    @property
    def _within(self) -> str:
        """Where it is in its folder: there may be a whole pipeline."""
        return ADAPTER if (Path(self._place) / ADAPTER).is_dir() else ""

    def _load_folder(self, made: Any, dtype: "torch.dtype") -> Any:
        for index in filter(is_index, map(str, (Path(self._place) / self._within).glob("*.json"))):
            check_index(self.name, Path(index))
        return load_pretrained(made, self._place, dtype, self._within)

    def _load_file(self, made: Any, dtype: "torch.dtype") -> Any:
        with safe_open(self._place, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if ".motion_modules." in key}  # noqa: SIM118
        chosen = {key: self.config[key] for key in (MIDDLE, LENGTH)}
        where = {"config": str(record.CONFIGS / SD1.configs), "subfolder": ADAPTER, "local_files_only": True}
        return made.from_single_file(tensors, dtype=dtype, **where, **chosen)


class Animated(Checkpoint):
    """An SD 1.x with a motion module in its network: it makes clips. The module was trained with another noise schedule."""

    kind = ANIMATED

    def __init__(self, base: Checkpoint, motion: str) -> None:
        """`motion` is the module's place. Raises SpinliteError if it can't be used in this base."""
        self._base = base
        if base.kind != "sd1":
            problem = f"model.motion is for {SD1.title}, and {base.name} is {KINDS[base.kind].title}"
            raise SpinliteError(problem, fix="add --set model.motion=none, or name an SD 1.5 as model.base")
        self.name, self.predictions, self.zero_snr = base.name, base.predictions, base.zero_snr
        self.unread, self._motion = base.unread, MotionModule(motion)
        unet = base.config("unet")
        mine, theirs = _sizes(self._motion.config, "motion_layers_per_block"), _sizes(unet, "layers_per_block")
        if mine != theirs:
            problem = f"{self._motion.name} is a motion module for networks of other sizes than {base.name}"
            published = theirs == _sizes(SD1.config("unet"), "layers_per_block")
            raise SpinliteError(problem, fix=FIX if published else "name an SD 1.5 or a finetune of it: --base MODEL")

    @property
    def clips(self) -> ClipRule | None:
        rule, longest = KINDS[ANIMATED].clips, self._motion.config[LENGTH]
        return rule and replace(rule, most=min(rule.most, longest), longest=longest)

    def config(self, part: str) -> dict[str, Any]:
        config = self._base.config(part)
        return config | {"beta_schedule": "linear"} if part == "scheduler" else config  # AnimateDiff, configs/training

    def load(self, part: str, dtype: "torch.dtype") -> Any:
        if part != "unet":
            return self._base.load(part, dtype)
        from accelerate import init_empty_weights
        from diffusers import UNetMotionModel

        unet, motion = self._base.load(part, dtype), self._motion.load(dtype)
        with init_empty_weights(include_buffers=False):
            net: Any = UNetMotionModel.from_unet2d(unet, motion, load_weights=False)
        net.load_state_dict({**unet.state_dict(), **motion.state_dict()}, assign=True)
        net._repeated_blocks = unet._repeated_blocks  # for torch.compile
        return net

    def fingerprint(self, *parts: str) -> str:
        own = self._base.fingerprint(*parts)
        return own if parts else fingerprint(own, self._motion.fingerprint())


def _sizes(config: Mapping[str, Any], layers: str) -> tuple[list[int], Any]:
    return list(config["block_out_channels"]), config[layers]


def _refuse_pickle(path: Path) -> None:
    """The authors' own files are pickles; the same modules are on the hub as safetensors."""
    if path.suffix.lower() in PICKLES:
        same = next((repo for start, repo in PICKLED.items() if path.name.startswith(start)), MOTION)
        problem = f"{path.name} is a pickle file: opening it can run any program hidden inside"
        raise SpinliteError(problem, fix=f"add --set model.motion={same}, or name a .safetensors file")


def _explain(name: str, call: Any) -> Any:
    """Return what `call` returns. Raises SpinliteError, in plain words, for the errors of the libraries it uses."""
    try:
        return call()
    except SpinliteError:
        raise
    except Exception as error:  # of several libraries, which have many kinds
        why = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "set model.motion to a MotionAdapter's folder, a hub id that this computer can reach, or a .safetensors file"
        raise SpinliteError(f"can't read the motion module {name}: {why}", fix=fix) from None
