"""The toy family's clips: 8 x 8 blocks of pixels, and 4 frames after the first, become one number a colour.

Latents are (3, 1 + (frames - 1) / 4, height / 8, width / 8).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spinlite.families.picture import ClipRule, Picture

RULE = ClipRule(fps=8.0, step=4, most=9)
SIZE, BLOCK, COLOURS = (32, 32), 8, 3
NEIGHBOURS = [(1, 1, 1), (0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)]  # (frame, row, column), 1: the same


class ClipNet(nn.Module):
    """An MLP on every place of a clip: what is there and beside it, where that is, time, caption."""

    def __init__(self, seed: int, words: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(len(NEIGHBOURS) * COLOURS + 3 + 1 + words, 64)
            self.second = nn.Linear(64, 64)
            self.last = nn.Linear(64, COLOURS)
        self.checkpointing = False

    def forward(self, x_t: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """(B, 3, F, h, w), (B,), (B, words) -> (B, 3, F, h, w)."""
        count, _, *sides = x_t.shape
        padded = F.pad(x_t, (1, 1, 1, 1, 1, 1))
        near = [padded[:, :, f : f + sides[0], y : y + sides[1], x : x + sides[2]] for f, y, x in NEIGHBOURS]
        where = torch.stack(torch.meshgrid(*(torch.arange(n, device=x_t.device) / n for n in sides), indexing="ij"))
        said = torch.cat([t[:, None].to(x_t), words.to(x_t)], 1)
        features = [*near, where.to(x_t).expand(count, -1, -1, -1, -1), said[..., None, None, None].expand(-1, -1, *sides)]
        inputs = torch.cat(features, 1).movedim(1, -1)
        hidden = checkpoint(self._block, inputs, use_reentrant=False) if self.checkpointing else self._block(inputs)
        return self.last(hidden).movedim(-1, 1)

    def _block(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(inputs))))


def latent_shape(rule: ClipRule) -> tuple[int, ...]:
    """The shape of the longest clip's latent."""
    return (COLOURS, rule.latents(rule.most), SIZE[1] // BLOCK, SIZE[0] // BLOCK)


def encode_clip(picture: Picture) -> Tensor:
    """A clip -> its latent, (3, F, h, w) in [-1, 1]."""
    blocks = [_blocks(frame) for frame in (picture.image, *picture.rest)]
    rest = [torch.stack(blocks[n : n + RULE.step]).mean(0) for n in range(1, len(blocks), RULE.step)]
    return torch.stack([blocks[0], *rest], 1) / 127.5 - 1


def decode_clip(latent: Tensor) -> list[Image.Image]:
    """A latent, (3, F, h, w) -> its frames: each latent frame after the first stands for four."""
    levels = ((latent.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().permute(1, 2, 3, 0)
    frames = [Image.frombytes("RGB", (each.shape[1], each.shape[0]), each.contiguous().numpy().tobytes()) for each in levels]
    large = [frame.resize((frame.width * BLOCK, frame.height * BLOCK), Image.Resampling.NEAREST) for frame in frames]
    return [large[0], *(frame for frame in large[1:] for _ in range(RULE.step))]


def encode_clips(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """As `Family.encode_pictures`."""
    return {"x0": torch.stack([encode_clip(picture) for picture in pictures])}


def _blocks(frame: Image.Image) -> Tensor:
    small = frame.resize((frame.width // BLOCK, frame.height // BLOCK), Image.Resampling.BOX)
    levels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return levels.view(small.height, small.width, COLOURS).permute(2, 0, 1).float()
