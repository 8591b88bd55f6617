"""Whether a LoRA file holds what was trained: read back, module by module; and in diffusers, by one denoising step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.lora.apply import applied
from spinlite.lora.tensors import Lora, Pair, distance, norm
from spinlite.maths.draws import gaussian
from spinlite.runs.store import read_tensors

WORST = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of a module's change, by the file's precision
STEP = 5e-2  # of the LoRA's effect on a prediction
SEEN = 0.05  # of the prediction: where the LoRA does less, both sides are enlarged, or half precision would hide it
SIDE = 32  # latents: enough to compare, and quick without a GPU


@dataclass(frozen=True)
class Verified:
    """What was compared, and how far apart it was, relative to the LoRA's own effect."""

    modules: int
    worst: float  # of a module's weight change
    step: float | None  # of one prediction; None where the LoRA does nothing

    def __str__(self) -> str:
        said = f"{self.modules} of {self.modules} modules, largest relative error {self.worst:.0e}"
        return said if self.step is None else f"{said}; a denoising step in diffusers differs by {self.step:.0e}"


def verify(path: Path, lora: Lora, family: Family, keys: Mapping[str, str]) -> Verified:
    """Compare a file with the LoRA that it should hold; `keys` are the file's, by module.

    Raises SpinliteError where a module is missing, or is further off than the file's precision explains.
    """
    off = compare_modules(path, lora, keys)
    return Verified(len(off), max(off.values()), compare_step(path, lora, family))


def compare_modules(path: Path, lora: Lora, keys: Mapping[str, str]) -> dict[str, float]:
    """How far each module's change in the file is from the LoRA's, relative to it; read as the programs do: alpha / rank x
    up down, without alpha up down."""
    written, _ = read_tensors(path)
    off: dict[str, float] = {}
    for name, pair in lora.items():
        key = keys[name]
        names = ("lora_down", "lora_up") if f"{key}.alpha" in written else ("lora_A", "lora_B")
        found = [written.get(f"{key}.{part}.weight") for part in names]
        if found[0] is None or found[1] is None:
            raise SpinliteError(f"{path} does not hold {name}", fix="report this as a bug")
        got = Pair(found[0].float(), found[1].float())
        scale = written[f"{key}.alpha"].item() / got.rank if f"{key}.alpha" in written else 1.0
        off[name] = distance(pair, got.times(scale).change)
        if not off[name] <= WORST[found[0].dtype]:
            raise _wrong(path, f"{name} is off by {off[name]:.1%}")
    return off


@torch.no_grad()
def compare_step(path: Path, lora: Lora, family: Family) -> float | None:
    """How far one prediction with the file, as another program loads it, is from one with the LoRA itself.

    Relative to what the LoRA changes; None where it changes nothing. The strength is raised on both sides until the change
    can be told from rounding.
    """
    if not any(norm(pair) for name, pair in lora.items() if name.startswith("unet.")):
        return None
    device = next(family.net.parameters()).device
    cond = {name: value.to(device) for name, value in family.encode_captions(["a picture"]).items()}
    family.free()
    x = gaussian((1, *family.latent_shape), "verify")[..., :SIDE, :SIDE].to(device)
    t = family.path.times(torch.tensor([0.5])).to(device)

    def predict() -> Tensor:
        return family.denoise(x, t, cond).float()

    base, strength = predict(), 1.0
    while True:
        with applied(family.net, lora, strength):
            mine = predict()
        effect = (mine - base).norm().item()
        if not effect < SEEN * base.norm().item() or strength > 1e9:
            break
        strength *= 4
    with family.with_lora_file(path, strength):
        off = (predict() - mine).norm().item() / effect
    if not off <= STEP:
        raise _wrong(path, f"a denoising step with it in diffusers differs by {off:.1%} of the LoRA's effect")
    return off


def _wrong(path: Path, what: str) -> SpinliteError:
    return SpinliteError(f"{path} does not hold what was trained: {what}", fix="report this as a bug, with the command")
