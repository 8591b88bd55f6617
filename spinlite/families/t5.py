"""T5's tokenizer, which ships with spinlite."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinlite.families.clip import TokenCounter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER = Path(__file__).parent / "configs" / "t5_tokenizer.json.gz"


def build_counter(limit: int) -> TokenCounter:
    """Counts tokens without the one that ends a caption. It needs no transformers, which takes a second to import."""
    tokenizer = _read()
    return TokenCounter(
        limit, lambda texts: [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    )


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of T5: 32,100 tokens, a caption ends with </s>, padded at the end."""
    from transformers import PreTrainedTokenizerFast

    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=_read(), padding_side="right", **special)


def _read() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(gzip.decompress(TOKENIZER.read_bytes()).decode("utf-8"))
