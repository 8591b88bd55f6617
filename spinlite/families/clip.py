"""What CLIP reads of a caption: its tokenizer, built from the list of merges in the package, and captions in chunks."""

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
SYNTAX = {  # what WebUIs read in a prompt -> how it looks
    "prompt weights": re.compile(r"(?<!\\)\((?!:)[^()]*:\s*[+-]?\d*\.?\d+\s*\)"),
    "wildcards": re.compile(r"__[A-Za-z][\w/*-]*?__|\{[^{}|]*\|[^{}]*\}"),
}


@dataclass(frozen=True)
class TokenCounter:
    """How many tokens captions have, and the `limit` that a text encoder reads, without the start and end tokens."""

    limit: int
    count: Callable[[Sequence[str]], list[int]]


def build_tokenizer() -> "CLIPTokenizer":
    """The tokenizer of every text encoder (CLIP, OpenCLIP) of Stable Diffusion: 49,408 tokens, 77 per caption."""
    from transformers import CLIPTokenizer

    vocab, merges = _pieces()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]


def build_counter() -> TokenCounter:
    """Counts tokens as `build_tokenizer` does, without transformers, which takes a second to import."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    vocab, merges = _pieces()
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([START, END])
    return TokenCounter(LENGTH - 2, lambda texts: [len(found.ids) for found in tokenizer.encode_batch(list(texts))])


def counter_of(tokenizer: Any) -> TokenCounter:
    """The same for a tokenizer of transformers."""

    def count(texts: Sequence[str]) -> list[int]:
        return list(map(len, tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids))

    return TokenCounter(tokenizer.model_max_length - 2, count)


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(number of each piece, merges)."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in map(str.split, lines)]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]  # one for each byte
    pieces = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def tokenize(tokenizer: Any, captions: Sequence[str], chunks: int = 1) -> "Tensor":
    """Captions -> (B, chunks, length) token ids. Every chunk is start, tokens, end and padding; what is over is cut off.

    The text encoder reads each chunk by itself, and their states lie side by side: sd-scripts' `_get_input_ids` cuts so too
    (WebUIs move a word that a chunk would break into the next one).
    """
    import torch

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
