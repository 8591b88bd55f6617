"""Families: what differs from one kind of base model to another, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

from spinlite.lora.tensors import Lora
from spinlite.maths.paths import Path

Cond = dict[str, Tensor]  # conditioning, one row a sample; nothing outside a family reads a key


@dataclass(frozen=True)
class Picture:
    """RGB pixels as the network takes them, and how they came to be. Sizes are (width, height) in pixels."""

    image: Image
    original_size: tuple[int, int]  # before it was resized
    crop: tuple[int, int]  # (left, top) of the cut, after it was resized


class Family(ABC):
    """A base model: how it encodes, denoises, decodes, and names its weights.

    Latents are (B, *latent_shape) for pictures of its own size, and in proportion for others.
    """

    path: Path
    net: nn.Module  # the only part on the device while the policy learns
    lora_targets: Mapping[str, Sequence[str]]  # by the names of model.targets
    latent_shape: tuple[int, ...]
    size: tuple[int, int]  # (width, height) of its pictures, px
    step: int  # px that the sides of other pictures are multiples of
    base_hash: str  # of the weights: what was made with them is named by it
    picture_hash: str  # of those that `encode` depends on
    caption_hash: str  # of those that `prompt` depends on
    title: str  # for people
    attention: str  # what computes it, and why
    start: Lora = {}  # noqa: RUF012  what a run on it begins with, by full names: {} or what `start_from` read

    @abstractmethod
    def start_from(self, path: FilePath) -> None:
        """Read the LoRA that a run begins with into `start`; its part for text encoders takes effect in `prompt`.

        Raises SpinliteError where it does not fit.
        """

    @abstractmethod
    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Pictures of one size -> {"x0": latents} and what conditioning depends on the picture, a row each, CPU.

        Latents are the means of what the encoder says; with `sampled` a sample of it each, a function of the picture's name.
        """

    @abstractmethod
    def encode_captions(self, captions: Sequence[str]) -> Cond:
        """Captions -> their conditioning, a row each, CPU. "" is the unconditional one."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's prediction: (B, ...), (B,) -> (B, ...)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> list[Image]:
        """Latents -> RGB pictures."""

    @abstractmethod
    def free(self) -> None:
        """Drop whatever `encode`, `prompt` and `decode` loaded; they load it again when called again."""

    @abstractmethod
    def set_checkpointing(self, on: bool) -> None:
        """Whether the network keeps one block's activations at a time and computes them again going back. At any time
        between two steps; it starts as the levers say."""

    @abstractmethod
    def sampler(self, name: str) -> Any:
        """A diffusers scheduler for this family's path. Raises SpinliteError for a name that it has none for."""

    @abstractmethod
    def export_name(self, name: str) -> str:
        """The key that kohya's layout has for a module, by its full name: "unet.MODULE" is the `net`'s MODULE."""

    @abstractmethod
    def export_metadata(self) -> dict[str, str]:
        """What other programs want to read in a LoRA file's header about its base model."""

    @abstractmethod
    def with_lora_file(self, path: FilePath, strength: float) -> AbstractContextManager[None]:
        """`net` with a LoRA file, as another program loads it, for the length of a block."""
