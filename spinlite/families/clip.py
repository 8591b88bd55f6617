"""CLIP's tokenizer, built from the list of merges that ships with spinlite."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
CHUNK = LENGTH - 2  # tokens of a caption that a text encoder reads at once


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
