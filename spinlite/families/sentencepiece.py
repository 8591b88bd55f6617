"""Tokenizers that a file holds as a model of sentencepiece, as ComfyUI keeps those of T5, UMT5 and others beside the weights.

The format is a protocol buffer (sentencepiece_model.proto). Only what a unigram tokenizer needs of it is read.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PIECES, TRAINER, NORMALISER = 1, 2, 3  # the fields of a model
TEXT, SCORE, KIND = 1, 2, 3  # of a piece
UNKNOWN, BYTE = 2, 6  # kinds of piece
UNIGRAM = 1
MODEL_KIND, CHARSMAP, PREFIX = 3, 2, 3  # fields of the trainer; of the normaliser
END, PAD, UNK = "</s>", "<pad>", "<unk>"


def build_tokenizer(model: bytes) -> "PreTrainedTokenizerFast":
    """A T5-like tokenizer: a caption ends with </s>, padded at the end. Raises ValueError if the model is of another kind."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    fields = [(number, value) for number, value in _fields(model)]
    trainer, normaliser = (dict(_fields(_only(fields, number))) for number in (TRAINER, NORMALISER))
    if trainer.get(MODEL_KIND, UNIGRAM) != UNIGRAM:
        raise ValueError("its tokenizer is no unigram model of sentencepiece")
    pieces = [_piece(value) for number, value in fields if number == PIECES]
    names, kinds = [name for name, _, _ in pieces], [kind for _, _, kind in pieces]
    vocab = [(name, score) for name, score, _ in pieces]
    tokenizer = Tokenizer(Unigram(vocab, kinds.index(UNKNOWN), byte_fallback=BYTE in kinds))
    blanks = normalizers.Replace(Regex(" {2,}"), " ")
    changes = [normalizers.Precompiled(normaliser[CHARSMAP])] if normaliser.get(CHARSMAP) else []
    tokenizer.normalizer = normalizers.Sequence([*changes, blanks, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always" if normaliser.get(PREFIX, 1) else "never")
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {END}", None, [(END, names.index(END))])
    special = {"eos_token": END, "unk_token": UNK, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **special)


def _piece(message: bytes) -> tuple[str, float, int]:
    """(text, score, kind) of a piece; kind 1 is an ordinary one."""
    fields = dict(_fields(message))
    score = struct.unpack("<f", fields.get(SCORE, b"\0" * 4))[0]
    return fields[TEXT].decode("utf-8"), score, fields.get(KIND, 1)


def _only(fields: list[tuple[int, Any]], wanted: int) -> bytes:
    return next((value for number, value in fields if number == wanted), b"")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer: a whole number, or bytes."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        match key & 7:
            case 0:
                value, at = _number(message, at)
            case 2:
                size, at = _number(message, at)
                value, at = message[at : at + size], at + size
            case 1 | 5 as wide:
                size = 8 if wide == 1 else 4
                value, at = message[at : at + size], at + size
            case _:
                raise ValueError("its tokenizer is no model of sentencepiece")
        yield key >> 3, value


def _number(message: bytes, at: int) -> tuple[int, int]:
    """(a whole number of seven bits a byte that begins at a place, the place after it)."""
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("its tokenizer is cut off")
        value |= (message[at] & 0x7F) << shift
        if message[at] < 0x80:
            return value, at + 1
        at, shift = at + 1, shift + 7
