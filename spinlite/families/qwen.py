"""Qwen's tokenizer (2, 2.5, 3), built from the list of merges that ships with spinlite."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinlite.families.clip import TokenCounter

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

MERGES = Path(__file__).parent / "configs" / "qwen_merges.txt.gz"
END = "<|endoftext|>"
SPECIAL = (  # in the order of their numbers, which follow those of the merges
    END, "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN = (  # numbered too, but left in place when text is decoded
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (  # Qwen3's own, for what captions need of it
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def build_counter(limit: int) -> TokenCounter:
    """Counts tokens as `build_tokenizer` does, without transformers, which takes a second to import."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    pieces, merges = _pieces()
    tokenizer = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    return TokenCounter(limit, lambda texts: [len(found.ids) for found in tokenizer.encode_batch(list(texts))])


def build_tokenizer() -> "Qwen2Tokenizer":
    """The tokenizer of Qwen3's text models: 151,669 tokens, padded at the end, with the chat template."""
    from transformers import AddedToken, Qwen2Tokenizer

    pieces, merges = _pieces()
    vocab = {piece: i for i, piece in enumerate([*pieces, *SPECIAL, *PLAIN])}
    made: Any = Qwen2Tokenizer
    ends: dict[str, Any] = {"unk_token": None, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": END}
    tokenizer = made(vocab=vocab, merges=merges, model_max_length=131072, clean_up_tokenization_spaces=False, **ends)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in PLAIN])
    tokenizer.padding_side, tokenizer.chat_template = "right", TEMPLATE
    return tokenizer


def read_states(encoder: Any, ids: Any, mask: Any) -> Any:
    """What a Qwen3 without its head says of tokens, ids and mask (B, L) each, with every layer's states.

    On torch's meta device the mask is left out: which places it hides would decide how attention is computed.
    """
    ids, mask = ids.to(encoder.device), mask.to(encoder.device)
    chosen = {"full_attention": None} if ids.is_meta else mask
    return encoder(input_ids=ids, attention_mask=chosen, output_hidden_states=True, use_cache=False)


def _pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """(pieces in the order of their numbers, merges)."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in map(str.split, lines)]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]  # one for each byte
    return [*symbols, *(left + right for left, right in merges)], merges
