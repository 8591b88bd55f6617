"""Checks that a LoRA file holds what was trained: module by module, and by one denoising step in diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.lora.apply import applied
from spinlite.lora.layouts import ENDS
from spinlite.lora.tensors import Lora, Pair, distance, norm
from spinlite.maths.draws import gaussian
from spinlite.runs.store import read_tensors

WORST = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of a module's change
# By the network's precision: the largest error of a prediction, relative to the LoRA's effect on it (a wrong file is off by
# about 1); and the share of a prediction that the LoRA must change, or it is scaled up on both sides: rounding would hide it.
STEP = {torch.float32: 5e-2, torch.float16: 5e-2, torch.bfloat16: 0.3}
SEEN = {torch.float32: 0.05, torch.float16: 0.05, torch.bfloat16: 0.2}
SIDE = 32  # side of the latents compared: enough to tell, and quick without a GPU


@dataclass(frozen=True)
class Verified:
    """How far the file is from the LoRA, relative to the LoRA's own effect."""

    modules: int
    worst: float  # largest error of a module's weight change
    step: float | None  # error of one prediction; None if the LoRA does nothing

    def __str__(self) -> str:
        words = f"{self.modules} of {self.modules} modules, largest relative error {self.worst:.0e}"
        return words if self.step is None else f"{words}; a denoising step in diffusers differs by {self.step:.0e}"


def verify(path: Path, lora: Lora, family: Family, keys: Mapping[str, str]) -> Verified:
    """Compare a file with the LoRA that it should hold; `keys` gives each module's key in the file.

    Raises SpinliteError if a module is missing, or further off than the file's precision explains.
    """
    errors, held = compare_modules(path, lora, keys)
    return Verified(len(errors), max(errors.values()), compare_step(path, held, family))


def compare_modules(path: Path, lora: Lora, keys: Mapping[str, str]) -> tuple[dict[str, float], Lora]:
    """(module -> relative error of its weight change in the file, the LoRA as the file holds it, rounded).

    A change is read as other programs do: alpha / rank x up @ down, or up @ down without an alpha. Raises as `verify`.
    """
    written, _ = read_tensors(path)
    errors: dict[str, float] = {}
    held: Lora = {}
    for name, pair in lora.items():
        key = keys[name]
        down, up = [next((written[each] for part in parts if (each := f"{key}.{part}.weight") in written), None)
                    for parts in zip(*ENDS.values(), strict=True)]  # fmt: skip
        if down is None or up is None:
            raise SpinliteError(f"{path} does not hold {name}", fix="report this as a bug")
        in_file = Pair(down.float(), up.float())
        scale = written[f"{key}.alpha"].item() / in_file.rank if f"{key}.alpha" in written else 1.0
        held[name] = in_file.times(scale)
        errors[name] = distance(pair, held[name].change)
        if not errors[name] <= WORST[down.dtype]:
            raise _mismatch(path, f"{name} is off by {errors[name]:.1%}")
    return errors, held


@torch.no_grad()
def compare_step(path: Path, lora: Lora, family: Family) -> float | None:
    """Error of one prediction with the file, as another program loads it, relative to what the LoRA itself changes.

    `lora` is what the file holds: with a very strong LoRA a network makes much of the file's rounding, which is no fault of the
    file. None if the LoRA changes nothing. The strength is raised on both sides until the change stands out from rounding.
    Raises as `verify`.
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

    precision = family.denoise(x, t, cond).dtype
    base, strength = predict(), 1.0
    while True:
        with applied(family.net, lora, strength):
            expected = predict()
        effect = (expected - base).norm().item()
        if not effect < SEEN[precision] * base.norm().item() or strength > 1e9:
            break
        strength *= 4
    with family.with_lora_file(path, strength):
        error = (predict() - expected).norm().item() / effect
    if not error <= STEP[precision]:
        raise _mismatch(path, f"a denoising step with it in diffusers differs by {error:.1%} of the LoRA's effect")
    return error


def _mismatch(path: Path, what: str) -> SpinliteError:
    return SpinliteError(f"{path} does not hold what was trained: {what}", fix="report this as a bug, with the command")
