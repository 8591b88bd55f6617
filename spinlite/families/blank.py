"""Base models of real size with random weights, to plan and measure a run before anything is downloaded."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinlite.config.settings import Model
from spinlite.families.checkpoint import Checkpoint, class_of
from spinlite.families.kinds import KINDS, Kind
from spinlite.families.single_file import load_padded_tokenizer
from spinlite.runs.files import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import nn

BLANK = "blank:"
KNOWN: dict[str, Kind] = {repo: kind for kind, record in KINDS.items() for repo in record.hub}
NOISE = 2**20  # random numbers, repeated to fill every weight


class Blank(Checkpoint):
    """`blank:` and a kind, such as `blank:klein-4b`; or `blank:` and another base, to take its shapes without its weights.

    Weights are normal with deviation 1 / sqrt(inputs), norms are 1, biases are 0. On torch's meta device they take no memory.
    """

    def __init__(self, base: str, shapes: Checkpoint | None = None) -> None:
        """`base` is a kind, or the name of the checkpoint that gives the `shapes`."""
        self.name, self._shapes = BLANK + base, shapes
        if shapes:
            self.kind, self.predictions, self.zero_snr = shapes.kind, shapes.predictions, shapes.zero_snr
        else:
            assert base in KINDS
            self.kind = base
            self.predictions, self.zero_snr = {}, None
        if self.kind == "sd2" and not self.predictions:
            self.predictions = {self.name: "v"}

    def config(self, part: str) -> dict[str, Any]:
        if self._shapes:
            return self._shapes.config(part)
        return KINDS[self.kind].config(part)

    def load(self, part: str, dtype: "torch.dtype") -> Any:
        if "tokenizer" in part:
            if self._shapes:
                return self._shapes.load(part, dtype)
            files = KINDS[self.kind].files
            return files.tokenizer(part) if files else load_padded_tokenizer(self.kind, part)
        from accelerate import init_empty_weights

        kind, config = class_of(KINDS[self.kind].parts, part), self.config(part)
        with init_empty_weights(include_buffers=False):
            model = kind(kind.config_class(**config)) if "encoder" in part else kind.from_config(config)
        if "encoder" in part:
            model.tie_weights()
        return fill_weights(model, dtype)

    def fingerprint(self, *parts: str) -> str:
        return fingerprint(self.name)


def fill_weights(model: "nn.Module", dtype: "torch.dtype") -> "nn.Module":
    """The model with random weights in place of its own. Shapes stay, and what diffusers keeps in fp32 is fp32."""
    import torch
    from diffusers import ModelMixin
    from torch import nn

    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0), device="cpu").to(dtype)
    made: dict[int, nn.Parameter] = {}  # a weight that two modules share is made once
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if isinstance(model, ModelMixin) else set()
    for place, module in model.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) not in made:
                weight = torch.empty(p.shape, dtype=torch.float32 if kept & {*place.split("."), name} else dtype)
                if p.ndim == 1:
                    weight.fill_(float(name == "weight"))
                elif not weight.is_meta:
                    repeated = noise.repeat(math.ceil(p.numel() / NOISE))[: p.numel()].view(p.shape)
                    torch.mul(repeated, p[0].numel() ** -0.5, out=weight)
                made[id(p)] = nn.Parameter(weight, requires_grad=False)
            module.register_parameter(name, made[id(p)])
    return model.eval()


def with_random_weights(model: Model) -> Model:
    """The same model settings with random weights, so that the base itself need not be downloaded.

    The kind comes from a local base, from the known hub ids, or from model.family; of other hub ids only configs are fetched.
    """
    is_local = model.base == "demo" or Path(model.base).expanduser().exists()
    if model.family == "toy" or model.base.startswith(BLANK):
        base = model.base
    elif model.base in KNOWN and not is_local:
        base = BLANK + KNOWN[model.base]
    elif is_local or model.family == "auto":
        base = BLANK + model.base
    else:
        base = BLANK + next((kind for kind, record in KINDS.items() if record.family == model.family), "sd1")
    motion = BLANK + model.motion if model.motion and not model.motion.startswith(BLANK) else model.motion
    return model.model_copy(update={"base": base, "vae": None, "motion": motion})
