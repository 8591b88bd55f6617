"""What each kind of base model must do. Nothing outside `families` knows which kind it has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from spinlite.families.picture import ClipRule, Drawn, Picture
from spinlite.lora.layouts import Layout
from spinlite.lora.tensors import Lora
from spinlite.maths.paths import Path

Cond = dict[str, Tensor]  # conditioning, one row per sample; nothing outside a family reads a key


class Family(ABC):
    """A base model: how it encodes, denoises, decodes, and names its weights.

    Latents are (B, *latent_shape) for pictures of the model's own size, (B, C, ..., h, w); other sizes in proportion. Those of
    clips are (B, C, F, H, W), `latent_shape` those of the longest ones; a picture is a clip of one frame.
    """

    path: Path  # how it adds noise, and what the network predicts
    net: nn.Module  # the only part on the device while the policy learns
    lora_targets: Mapping[str, Sequence[str]]  # model.targets -> layers with these endings, or these names
    layouts: Sequence[Layout]  # that its LoRA files may have; the first is written unless another is asked for
    latent_shape: tuple[int, ...]
    size: tuple[int, int]  # (width, height) of its pictures, px
    step: int  # px; sides of other pictures are multiples of it
    base_hash: str  # of all weights: files made with them carry it in their names
    picture_hash: str  # of the weights that `encode_pictures` uses
    caption_hash: str  # of the weights that `encode_captions` uses
    title: str  # for messages
    attention: str  # what computes attention, and why, in words
    note: str = ""  # what a user of the base must know, for messages: its licence, where else its LoRA is used
    clips: ClipRule | None = None  # which clips it makes; None: pictures alone
    start: Lora = {}  # noqa: RUF012  the LoRA that a run starts from, by full names; {} without one

    @abstractmethod
    def start_from(self, path: FilePath) -> None:
        """Read the LoRA that a run starts from into `start`; its part for text encoders acts in `encode_captions`.

        Raises SpinliteError if it does not fit.
        """

    @abstractmethod
    def encode_pictures(self, pictures: Sequence[Picture], sampled: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Pictures of one size, or clips of one length -> {"x0": latents} and the conditioning that depends on them.

        There is a row for each, on the CPU. Latents are the means of the encoder's distribution; with `sampled`, random samples
        of it, seeded by these names.
        """

    @abstractmethod
    def count_chunks(self, captions: Sequence[str]) -> int:
        """How many chunks of tokens the longest of these captions takes, at most as many as model.max_tokens allows."""

    @abstractmethod
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        """Captions -> their conditioning, a row each, on the CPU. "" gives the unconditional one.

        Every row has so many chunks: a shorter caption is padded, a longer one is cut.
        """

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's prediction: (B, ...), (B,) -> (B, ...)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Sequence[Drawn]:
        """Latents -> RGB pictures; with `clips`, a list of frames for each."""

    @abstractmethod
    def free(self) -> None:
        """Free what `encode_pictures`, `encode_captions` and `decode` loaded; they load it again when called again."""

    @abstractmethod
    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off: keep one block's activations at a time, compute the others again going back.

        Allowed between any two steps. At the start it is as the device's levers say.
        """

    @abstractmethod
    def schedule(self, name: str, spacing: str, steps: int, shape: Sequence[int], device: torch.device | str) -> Any:
        """A diffusers scheduler for this family's path, by name, its steps set as `play.spacing` says.

        `shape` is that of a latent, (C, ..., h, w): some families spread the steps by it. Timesteps are t times
        `Path.timestep_scale`. Raises SpinliteError if there is none of that name or spacing.
        """

    @abstractmethod
    def shift(self, shape: Sequence[int]) -> float:
        """How far training times lean to noise (`maths.times.TimeMap.shift`), unless draw.shift says so; 1: not at all."""

    @abstractmethod
    def export_name(self, name: str, layout: Layout) -> str:
        """A module's full name -> its key in a file. "unet.MODULE" is MODULE of `net`, whatever kind of network that is."""

    @abstractmethod
    def export_metadata(self) -> dict[str, str]:
        """What other programs read about the base model in a LoRA file's header."""

    @abstractmethod
    def with_lora_file(self, path: FilePath, strength: float) -> AbstractContextManager[None]:
        """`net` with a LoRA file, loaded as another program loads it, inside a `with` block."""
