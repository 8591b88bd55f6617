"""Tokens are counted without transformers, as its tokenizer makes them."""

import random

from spinlite.families.clip import build_counter, build_tokenizer, counter_of

CAPTIONS = [
    "", "a cat", "1girl, red hair, smile", "  two   spaces\tand a tab ", "café at NIGHT", "cafe\u0301",
    "it's they're we'll I'd",
    "(word:1.2), [other]", "2024年の東京", "emoji 🎉🎉", "<|endoftext|> as text", "don’t", "x" * 300,
    "naïve – “quoted”", "\x00", "ﬁne",
    "underscore_name, 3.14", "Привет мир", "a-b_c.d/e", "word " * 90,
]  # fmt: skip


def test_both_count_the_same():
    chance = random.Random(0)
    letters = [chr(chance.randrange(1, 0x3000)) for _ in range(200)] + list("aeiou ,.'_-0123")
    captions = CAPTIONS + ["".join(chance.choices(letters, k=40)) for _ in range(300)]
    quick, whole = build_counter(), counter_of(build_tokenizer())
    assert quick.limit == whole.limit == 75 and quick.count(captions) == whole.count(captions)
