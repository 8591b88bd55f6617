"""The demo's CLIP tokenizer: the merges that emoji names and keywords need, in CLIP's order, and every byte.

It splits those texts exactly as the full vocabulary does, and any other text at worst into bytes.
"""

import json
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32


def byte_symbols() -> list[str]:
    """The printable characters that stand for the 256 bytes, in GPT-2's and CLIP's order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def build(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """A CLIP tokenizer of these merges: bytes, bytes that end a word, merged pieces, start, end."""
    symbols = byte_symbols()
    pieces = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # type: ignore[arg-type]


def cut(merges: list[tuple[str, str]], texts: list[str]) -> list[tuple[str, str]]:
    """The merges behind the pieces of `texts`. Each piece comes of one merge alone, so its halves name all it needs."""
    maker = {left + right: (left, right) for left, right in merges}
    full = build(merges)
    needed = {piece for text in texts for piece in full.tokenize(text)}
    waiting = list(needed)
    while waiting:
        for half in maker.get(waiting.pop(), ()):
            if half not in needed:
                needed.add(half)
                waiting.append(half)
    return [pair for pair in merges if pair[0] + pair[1] in needed]


def check(small: CLIPTokenizer, full: CLIPTokenizer, texts: list[str]) -> None:
    """Raises ValueError where the cut vocabulary splits a text in other pieces than the full one."""
    for text in texts:
        if small.tokenize(text) != full.tokenize(text):
            raise ValueError(f"the cut vocabulary splits {text!r} into {small.tokenize(text)}")


def write_tokenizer(merges: list[tuple[str, str]], texts: list[str], folder: Path) -> CLIPTokenizer:
    """Cuts, checks and writes the tokenizer as vocab.json, merges.txt and configs; returns it as read back."""
    kept = cut(merges, texts)
    small = build(kept)
    folder.mkdir(parents=True, exist_ok=True)
    small.save_pretrained(folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # the two files below say the same, and are what SD 1.5 ships
    vocab = json.dumps(small.get_vocab(), ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in kept)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = CLIPTokenizer.from_pretrained(str(folder))
    check(read, build(merges), texts)
    return read
