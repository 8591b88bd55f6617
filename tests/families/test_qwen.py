"""Qwen's tokenizer from the merges in the package: numbers that Qwen's own gives."""

from typing import Any

from spinlite.families.qwen import build_tokenizer


def test_captions_get_the_numbers_that_qwen_gives_them():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 151669
    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<think>": 151667, "</think>": 151668}
    assert {word: tokenizer.convert_tokens_to_ids(word) for word in special} == special
    text: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello world 123"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text == "<|im_start|>user\nHello world 123<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ids = [151644, 872, 198, 9707, 1879, 220, 16, 17, 18, 151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert tokenizer(text).input_ids == ids
    padded = tokenizer("日本 café", padding="max_length", max_length=8)
    assert padded.input_ids[-1] == 151643 and padded.attention_mask[-1] == 0
    assert tokenizer.decode(padded.input_ids, skip_special_tokens=True) == "日本 café"
