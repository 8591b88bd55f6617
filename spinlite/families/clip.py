"""What CLIP reads of a caption: its tokenizer, built from the list of merges in the package, and captions in chunks."""

import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
SYNTAX = {  # what WebUIs read in a prompt -> how it looks
    "prompt weights": re.compile(r"(?<!\\)\((?!:)[^()]*:\s*[+-]?\d*\.?\d+\s*\)"),
    "wildcards": re.compile(r"__[A-Za-z][\w/*-]*?__|\{[^{}|]*\|[^{}]*\}"),
}


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of every text encoder (CLIP, OpenCLIP) of Stable Diffusion: 49,408 tokens, 77 per caption."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]  # one for each byte
    pieces = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]


def tokenize(tokenizer: Any, captions: Sequence[str], chunks: int = 1) -> Tensor:
    """Captions -> (B, chunks, length) token ids. Every chunk is start, tokens, end and padding; what is over is cut off.

    The text encoder reads each chunk by itself, and their states lie side by side: sd-scripts' `_get_input_ids` cuts so too
    (WebUIs move a word that a chunk would break into the next one).
    """
    inside = tokenizer.model_max_length - 2
    rows = [[ids[i * inside : (i + 1) * inside] for i in range(chunks)] for ids in _ids(tokenizer, captions, chunks * inside)]
    start, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return torch.tensor([[[start, *ids, end, *[padding] * (inside - len(ids))] for ids in row] for row in rows])


def count_chunks(tokenizer: Any, captions: Sequence[str], most: int) -> int:
    """How many chunks the longest caption needs, at least 1 and at most `most`."""
    inside = tokenizer.model_max_length - 2
    longest = max(map(len, _ids(tokenizer, captions, most * inside)), default=0)
    return max(1, -(-longest // inside))


def find_syntax(captions: Iterable[str]) -> dict[str, list[str]]:
    """Prompt syntax of WebUIs in captions, which is learned as plain text: what it is -> an example from each caption."""
    found: dict[str, list[str]] = {}
    for caption in captions:
        for what, pattern in SYNTAX.items():
            if match := pattern.search(caption):
                found.setdefault(what, []).append(match[0])
    return found


def _ids(tokenizer: Any, captions: Sequence[str], most: int) -> list[list[int]]:
    """The tokens of each caption without start and end, at most `most`."""
    if not captions:
        return []
    return tokenizer(list(captions), add_special_tokens=False, truncation=True, max_length=most).input_ids
