"""CLIP's tokenizer, built from the merges in the package."""

import gzip
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def tokenizer() -> CLIPTokenizer:
    """The tokenizer of every CLIP and OpenCLIP text encoder of Stable Diffusion: 49,408 pieces, 77 of them a text."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines]
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]  # the 256 bytes, printable
    pieces = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]
