"""Captions in chunks: a text encoder reads so many tokens at once, and longer captions one chunk after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spinlite.families.clip import CHUNK as CHUNK


def tokenize(tokenizer: Any, captions: Sequence[str], chunks: int = 1) -> Tensor:
    """Captions -> (B, chunks, length) token ids. Every chunk is start, tokens, end and padding; what is over is cut off.

    The text encoder reads each chunk by itself, and their states lie side by side: sd-scripts' `_get_input_ids` cuts so too
    (WebUIs move a word that a chunk would break into the next one).
    """
    inside = tokenizer.model_max_length - 2
    rows = [
        [ids[i * inside : (i + 1) * inside] for i in range(chunks)] for ids in _ids(tokenizer, captions, chunks * inside)
    ]  # fmt: skip
    start, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return torch.tensor([[[start, *ids, end, *[padding] * (inside - len(ids))] for ids in row] for row in rows])


def count_chunks(tokenizer: Any, captions: Sequence[str], most: int) -> int:
    """How many chunks the longest caption needs, at least 1 and at most `most`."""
    inside = tokenizer.model_max_length - 2
    longest = max(map(len, _ids(tokenizer, captions, most * inside)), default=0)
    return max(1, -(-longest // inside))


def _ids(tokenizer: Any, captions: Sequence[str], most: int) -> list[list[int]]:
    """The tokens of each caption without start and end, at most `most`."""
    if not captions:
        return []
    return tokenizer(list(captions), add_special_tokens=False, truncation=True, max_length=most).input_ids
