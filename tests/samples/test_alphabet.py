from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from kexue_train.samples.train_wordpiece import count_characters

TEXT = st.text(alphabet=st.sampled_from([*"abcB1,.-$ \n好图é"]), max_size=60)


@given(st.lists(TEXT, max_size=4))
def test_counts_are_those_of_words_cut_by_the_tokenizer(texts: list[str]) -> None:
    blocks = [normalizers.BertNormalizer(lowercase=True).normalize_str(text) for text in texts]
    words = [word for block in blocks for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(block)]
    counts = count_characters(blocks)
    total, inner = Counter("".join(words)), Counter("".join(word[1:] for word in words))
    assert {chr(i): int(counts.total[i]) for i in counts.total.nonzero()[0]} == total
    assert {chr(i): int(counts.continuing[i]) for i in counts.continuing.nonzero()[0]} == inner


def test_the_most_frequent_characters_are_chosen_as_far_as_they_fit() -> None:
    counts = count_characters(["aaaa bbb bb cc d"])
    assert counts.choose(max_pieces=100, min_frequency=1).characters == ["a", "b", "c", "d"]
    assert counts.choose(max_pieces=100, min_frequency=1).continuing == ["a", "b", "c"]
    assert counts.choose(max_pieces=100, min_frequency=2).characters == ["a", "b", "c"]
    assert counts.choose(max_pieces=5, min_frequency=1).characters == ["a", "b"]
