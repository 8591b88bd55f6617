"""AnimateDiff (Guo et al. 2023, arXiv 2307.04725), over diffusers: SD 1.x with a motion module in it.

Pictures are clips of one frame.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spinlite.config.settings import Model
from spinlite.errors import SpinliteError
from spinlite.families.diffusion import TARGETS
from spinlite.families.family import Cond, Picture
from spinlite.families.kinds import KINDS
from spinlite.families.motion_kinds import ANIMATED, is_motion, lora_name
from spinlite.families.names import module_shapes
from spinlite.families.picture import Drawn, with_frames
from spinlite.families.sd import StableDiffusion
from spinlite.lora.layouts import Layout
from spinlite.memory.device import Device
from spinlite.runs.files import fingerprint
from spinlite.runs.store import read_tensors

AT_ONCE = 2**15  # places in one call of an attention kernel: the grids of CUDA's end at 65,535
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")  # what motion LoRAs change


class AnimateDiff(StableDiffusion):
    """Any base that is an SD 1.x, with a motion module (model.motion).

    Every frame is a picture to the VAE and to the layers of SD 1.x, which read the caption once for each; the motion module
    looks along the frames. A LoRA on the layers of SD 1.x is one for SD 1.x; with model.targets = "motion" it is a motion LoRA.
    """

    kinds = (ANIMATED,)

    def __init__(self, model: Model, device: Device) -> None:
        super().__init__(model, device)
        self.clips = with_frames(self._checkpoint.clips, model.frames)
        channels, height, width = self.latent_shape
        self.latent_shape = (channels, self.clips.most if self.clips else 1, height, width)
        self.picture_hash = fingerprint(self.picture_hash, "frames")
        self.note = KINDS[ANIMATED].note
        self.title += f", moved by {model.motion}" * bool(model.motion)
        names = list(module_shapes(self.net))
        self.lora_targets = {
            choice: [name for name in names if not is_motion(name) and f".{name}".endswith(tuple(f".{end}" for end in ends))]
            for choice, ends in TARGETS.items()
        } | {"motion": [name for name in names if is_motion(name) and name.endswith(ATTENTION)]}
        self._moves = model.targets == "motion"
        self.layouts = ("animatediff", "diffusers") if self._moves else StableDiffusion.layouts

    def _place_network(self) -> None:
        super()._place_network()
        for name, module in self.net.named_modules():
            if isinstance(module, Attention) and is_motion(name):
                module.set_processor(_AlongFrames())  # pyright: ignore[reportArgumentType]

    def start_from(self, path: FilePath) -> None:
        super().start_from(path)
        modules = [name.removeprefix("unet.") for name in self.start if name.startswith("unet.")]
        if any(is_motion(name) != self._moves for name in modules):
            learns, given = ("a motion module", "layers of SD 1.x") if self._moves else ("layers of SD 1.x", "a motion module")
            fix = f"add --set model.targets={'linear' if self._moves else 'motion'}, or use another LoRA"
            raise SpinliteError(f"{path.name} changes {given}, but this run is for {learns} (model.targets)", fix=fix)

    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        frames = [frame for clip in pictures for frame in (clip.image, *clip.rest)]
        count = len(frames) // len(pictures)
        stills = [Picture(frame, frame.size, (0, 0)) for frame in frames]
        names = [f"{name} {n}" for name in sampled for n in range(count)] if sampled else None
        x0 = super().encode_pictures(stills, names)["x0"]
        return {"x0": x0.unflatten(0, (-1, count)).transpose(1, 2).contiguous()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        each = cond["prompt"].repeat_interleave(x_t.shape[2], 0)  # as diffusers' pipeline gives it: a row for each frame
        return super().denoise(x_t, t, {"prompt": each})

    def decode(self, latents: Tensor) -> Sequence[Drawn]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = latents.shape[2]
        frames: Any = super().decode(latents.transpose(1, 2).flatten(0, 1))
        return [frames[n : n + count] for n in range(0, len(frames), count)]

    def set_checkpointing(self, on: bool) -> None:
        """diffusers computes the motion modules of only the middle block again."""
        super().set_checkpointing(on)
        for module in self.net.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                vars(module).pop("forward", None)
                if on:
                    vars(module)["forward"] = functools.partial(_computed_again, module.forward)

    def export_name(self, name: str, layout: Layout) -> str:
        return lora_name(name, layout)

    @contextlib.contextmanager
    def with_lora_file(self, path: FilePath, strength: float) -> Iterator[None]:
        if not self._moves:
            with super().with_lora_file(path, strength):
                yield
            return
        net: Any = self.net
        net.load_lora_adapter(_read_motion_lora(path), prefix="unet", adapter_name="file")
        try:
            net.set_adapters("file", strength)
            yield
        finally:
            net.unload_lora()


class _AlongFrames(AttnProcessor2_0):
    """torch's attention along the frames. Its batch is every place of every clip, which is more than a kernel takes at once."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        parts = hidden_states.split(AT_ONCE)
        found = [super(_AlongFrames, self).__call__(attn, part, *args, **named) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)


def _computed_again(forward: Any, *args: Any, **named: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **named) if torch.is_grad_enabled() else forward(*args, **named)


def _read_motion_lora(path: FilePath) -> dict[str, Tensor]:
    """A motion LoRA by diffusers' names. The authors' keys lead to layers by the rules of AnimateDiff-Evolved's loader."""
    tensors, _ = read_tensors(path)
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if "temporal" not in key:
            found[key] = value
            continue
        part = {"down": "lora_A", "up": "lora_B"}[key.split(".")[-2]]
        layer = key.replace("processor.", "").replace("_lora.down.weight", "").replace("_lora.up.weight", "")
        layer = f"{layer}.0" if layer.endswith(".to_out") else layer
        [name] = convert_animatediff_checkpoint_to_diffusers({layer: value})
        found[f"unet.{name}.{part}.weight"] = value
    return found
