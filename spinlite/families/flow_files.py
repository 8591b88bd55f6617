"""A flow model in separate .safetensors files, as ComfyUI and model sites have it: the network, the VAE, the text encoder."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from spinlite.errors import SpinliteError
from spinlite.families.checkpoint import Checkpoint, class_of, explain_errors, refuse_distilled, require_sound, require_whole
from spinlite.families.flow_kinds import prefix_of
from spinlite.families.keys import scaled
from spinlite.families.kinds import KINDS
from spinlite.families.record import Files, Kind, Native, Shapes
from spinlite.families.sentencepiece import build_tokenizer
from spinlite.families.single_file import read_header
from spinlite.runs.files import fingerprint, fingerprint_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BESIDE = {"vae": ("vae",), "text_encoder": ("text_encoders", "clip")}  # ComfyUI's folders, by part
SETTINGS = {"vae": "model.vae", "text_encoder": "model.text_encoder"}
SAID = "should be kept in float32"  # diffusers, when it casts a whole model; `_keep_exact` puts that right
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: SAID not in record.getMessage())
SCALED = (".comfy_quant", "scaled_fp8", ".weight_scale", ".scale_weight")


class FlowFiles(Checkpoint):
    """A network in one file, and the files of its other parts: those that are named, or else those in ComfyUI's folders."""

    predictions, zero_snr = {}, None

    def __init__(self, path: Path, kind: Kind, shapes: Shapes, others: Mapping[str, str]) -> None:
        """`others` gives the places of other parts. Raises SpinliteError if weights have scales, which nothing here reads,
        or if its name is that of a distilled model.
        """
        self.name, self.kind, self._path, self._shapes = path.name, kind, path, shapes
        self._others = {part: Path(place).expanduser() for part, place in others.items() if place}
        if any(key.endswith(SCALED) for key in shapes):
            problem = f"{self.name} holds weights in 8 or 4 bits with scales beside them"
            raise SpinliteError(problem, fix="use the version in bf16; spinlite makes weights smaller itself (memory.quantize)")
        refuse_distilled(self)

    def config(self, part: str) -> dict[str, Any]:
        return KINDS[self.kind].config(part)

    def load(self, part: str, dtype: "torch.dtype") -> Any:
        record = KINDS[self.kind]
        made = class_of(record.parts, part)
        if "tokenizer" in part:
            return self._tokenizer(part) if self._files.vocabulary else self._files.tokenizer(part)
        if part == record.net:
            tensors, options = self._network(), {"config": str(record.folder), "subfolder": part, "local_files_only": True}
            model = explain_errors(self.name, lambda: made.from_single_file(dict(tensors), dtype=dtype, **options))
            _keep_exact(model, tensors, self._files.native)
            return require_sound(self.name, part, require_whole(self.name, part, model))
        if part in self._files.inside:
            tensors = self._network(self._files.inside[part])
            return require_sound(self.name, part, require_whole(self.name, part, self._fill(made, part, tensors, dtype)))
        place = self._find(part)
        if place.is_dir():
            model = explain_errors(place.name, lambda: made.from_pretrained(str(place), dtype=dtype, use_safetensors=True))
        else:
            model = explain_errors(place.name, lambda: self._from_file(made, part, place, dtype))
        return require_sound(place.name, part, require_whole(place.name, part, model))

    def fingerprint(self, *parts: str) -> str:
        net = KINDS[self.kind].net
        wanted = [part for part in (net, *BESIDE) if not parts or part.startswith(parts)]
        wanted += [net for part in self._files.inside if parts and part.startswith(parts)]
        return fingerprint(*[self._hashes(part) for part in wanted])

    @cached_property
    def _known(self) -> dict[str, str]:
        return {}

    @property
    def _files(self) -> Files:
        files = KINDS[self.kind].files
        assert files
        return files

    def _hashes(self, part: str) -> str:
        """The hash of a part's file, computed once."""
        if part not in self._known:
            place = self._path if part == KINDS[self.kind].net else self._find(part)
            files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
            self._known[part] = fingerprint_files(files)
        return self._known[part]

    def _network(self, inside: str = "") -> "dict[str, Tensor]":
        """The network's tensors without a prefix, which diffusers' converters do not all know; or those of a part `inside`."""
        prefix = f"{prefix_of(self._shapes, self._files.mark) or ''}{inside}"
        others = tuple(f"{prefix}{each}" for each in self._files.inside.values()) if not inside else ()
        keys = [key for key in self._shapes if key.startswith(prefix) and not key.startswith(others)]
        with safe_open(self._path, "pt") as file:
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    def _from_file(self, made: Any, part: str, place: Path, dtype: "torch.dtype") -> Any:
        """A VAE or text encoder from one file, whose tensors get diffusers' or transformers' names."""
        with safe_open(place, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return self._fill(made, part, self._files.rename(part, scaled(tensors, dtype)), dtype)

    def _fill(self, made: Any, part: str, tensors: "dict[str, Tensor]", dtype: "torch.dtype") -> Any:
        """A part by its published settings with these weights."""
        from accelerate import init_empty_weights

        config = self.config(part)
        with init_empty_weights(include_buffers=False):
            model = made(made.config_class(**config)) if "encoder" in part else made.from_config(config)
        wanted = model.state_dict().keys()
        kept = {key: value for key, value in tensors.items() if key in wanted}
        floats = {key: value.to(dtype) if value.is_floating_point() else value for key, value in kept.items()}
        model.load_state_dict(floats, strict=False, assign=True)
        if "encoder" in part:
            model.tie_weights()
        return model.eval()

    def _tokenizer(self, part: str) -> Any:
        """The tokenizer in the text encoder's file, or in its folder."""
        place, key = self._find("text_encoder"), self._files.vocabulary
        if place.is_dir():
            made = class_of(KINDS[self.kind].parts, part)
            return explain_errors(place.name, lambda: made.from_pretrained(str(place)))
        if key not in read_header(place)[0]:
            named = self._files.others["text_encoder"]
            raise SpinliteError(f"{place.name} holds no tokenizer ({key})", fix=f"use ComfyUI's {named}, which does")
        with safe_open(place, "np") as file:
            return explain_errors(place.name, lambda: build_tokenizer(file.get_tensor(key).tobytes()))

    def _find(self, part: str) -> Path:
        """Where a part is: as its setting says, or the file in ComfyUI's folders for it that holds such a part.

        Of several the one with the published name is taken.
        """
        if part in self._others:
            return self._others[part]
        found: list[Path] = []
        for folder in (self._path.parent, *(self._path.parent.parent / name for name in BESIDE[part])):
            for path in sorted(folder.glob("*.safetensors")):
                if path != self._path and self._files.is_part(part, read_header(path)[0]):
                    found.append(path)
        found = [path for path in found if path.name == self._files.others[part]] or found
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} files fit: {', '.join(path.name for path in found)}" if found else "none is beside it"
        wanted = f"a {part.replace('_', ' ')}, such as {self._files.others[part]}"
        problem = f"{self.name} is the network alone, and it needs {wanted}: {what}"
        raise SpinliteError(problem, fix=f"add --set {SETTINGS[part]}=FILE.safetensors")


def _keep_exact(model: Any, tensors: "Mapping[str, Tensor]", native: Native) -> None:
    """Give the modules that stay in fp32 their own numbers again: of a folder diffusers keeps them, of a file it does not."""
    from accelerate import init_empty_weights

    exact = set(model._keep_in_fp32_modules or ())
    with init_empty_weights(include_buffers=False):
        buffers = dict(type(model).from_config(model.config).named_buffers())
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if exact & set(name.split(".")):
            weight.data = buffers[name] if name in buffers else tensors[native(name).key].float()
