"""T5's tokenizer from the file in the package: numbers that T5's own gives."""

from spinlite.families.t5 import build_counter, build_tokenizer


def test_captions_get_the_numbers_that_t5_gives_them():
    tokenizer, counter = build_tokenizer(), build_counter(511)
    text = "translate English to German: The house is wonderful."
    assert tokenizer(text).input_ids == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]
    assert tokenizer("").input_ids == [1]
    padded = tokenizer(text, padding="max_length", max_length=16)
    assert padded.input_ids[-1] == 0 and padded.attention_mask == [1] * 11 + [0] * 5
    assert counter.limit == 511 and counter.count([text, ""]) == [10, 0]
