from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from kexue_train.samples import words as words_module
from kexue_train.samples.words import BertWords, chinese_characters

ODD = "aZé\u0301\u00df\u0130中豈𠀀\u9fff，.#'$ \t\n\x00\x1c\x85\u200b\u2028\u3000\ufffd\u2260\u037e각ｆ（😀א"
TEXT = st.one_of(st.text(max_size=40), st.text(alphabet=ODD, max_size=40))
FORMS = [(True, None), (False, None), (False, True), (True, False)]


def words_by_hand(tokenizer: Tokenizer, text: str) -> list[str]:
    normalized = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]


@pytest.fixture(params=FORMS, ids=lambda form: f"lowercase={form[0]},strip_accents={form[1]}")
def any_tokenizer(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Tokenizer:
    lowercase, strip_accents = request.param
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    return tokenizer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_words_and_pieces_are_those_of_the_tokenizer(any_tokenizer: Tokenizer, text: str) -> None:
    words = BertWords(any_tokenizer)
    found = words.split(text)
    assert found == words_by_hand(any_tokenizer, text)
    any_tokenizer.encode_special_tokens = True
    encoding = any_tokenizer.encode(text, add_special_tokens=False)
    ids, lengths, chinese = words.pieces(found)
    assert ids.tolist() == encoding.ids
    assert np.repeat(np.arange(len(found)), lengths).tolist() == [encoding.word_ids[i] for i in range(len(ids))]
    assert chinese.sum() == sum(chinese_characters()[ord(c)] for c in text)


def test_chinese_characters_are_always_words_of_one_character(tokenizer: Tokenizer) -> None:
    words = BertWords(tokenizer)
    for point in np.flatnonzero(chinese_characters()).tolist():
        assert [len(word) for word in words.split(f"a{chr(point)}b")] == (
            [1, 1, 1] if chinese_characters()[point] else [2]
        )


# Combining marks of every class, precomposed characters, Hangul jamo, and what the normalizer drops between marks.
MARKS = "".join(chr(point) for point in range(0x20000) if unicodedata.combining(chr(point)))
BETWEEN = "xé각\u1112\u1161\u11abệאِ\U0001d15e\U0001d1bb\U0001d160\u200d\x00\u034f 中"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(MARKS), st.sampled_from(BETWEEN)), max_size=12).map("".join))
@example("x\u302e\U0001d165y")
@example("x\u302e\x00\U0001d165\u0301y")
@example("x\u302e\u034f\U0001d165y")
@example("x\u302e\U0001d15ey")
def test_marks_are_in_the_order_of_the_tokenizer(any_tokenizer: Tokenizer, text: str) -> None:
    assert BertWords(any_tokenizer).split(text) == words_by_hand(any_tokenizer, text)


def test_every_two_kept_marks_are_in_the_order_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    kept = [mark for mark in MARKS if tokenizer.normalizer.normalize_str(f"x{mark}") != "x"]
    text = " ".join(f"x{first}{second}y" for first in kept[:60] for second in kept[-60:])
    assert len(kept) > 8
    assert BertWords(tokenizer).split(text) == words_by_hand(tokenizer, text)


@pytest.mark.slow
def test_every_character_is_read_as_the_tokenizer_reads_it(any_tokenizer: Tokenizer) -> None:
    words = BertWords(any_tokenizer)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    for start in range(0, len(points), 1000):
        text = "".join(f"a{chr(point)}b{chr(point)}{chr(point)}" for point in points[start : start + 1000])
        assert words.split(text) == words_by_hand(any_tokenizer, text)
    others = [chr(point) for point in points if not chinese_characters()[point]]
    assert not words.pieces(words.split(" ".join(others)))[2].any()


def test_forgetting_words_changes_nothing(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful, whole = BertWords(tokenizer), BertWords(tokenizer)
    monkeypatch.setattr(words_module, "_MAX_KNOWN_WORDS", 3)
    for text in texts:
        found, wanted = forgetful.pieces(forgetful.split(text)), whole.pieces(whole.split(text))
        assert [array.tolist() for array in found] == [array.tolist() for array in wanted]


def test_a_word_beyond_the_limit_is_unknown(tokenizer: Tokenizer) -> None:
    words = BertWords(tokenizer)
    ids, lengths, _ = words.pieces(["a" * 100, "a" * 101])
    assert ids.tolist() == [*tokenizer.encode("a" * 100).ids[1:-1], tokenizer.token_to_id("[UNK]")]
    assert lengths.tolist() == [len(ids) - 1, 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, st.integers(1, 9))
def test_pieces_of_a_text_have_its_words(tokenizer: Tokenizer, text: str, max_chars: int) -> None:
    words = BertWords(tokenizer)
    pieces = words.cut(text, max_chars)
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in words.split(piece)] == words.split(text)


def test_a_text_is_cut_at_space_or_punctuation_then_between_chinese_characters(tokenizer: Tokenizer) -> None:
    words = BertWords(tokenizer)
    assert words.cut("one two three", 6) == ["one ", "two ", "three"]
    assert words.cut("图书，馆里", 4) == ["图书，", "馆里"]
    assert words.cut("图书馆里面", 2) == ["图书", "馆里", "面"]
    assert words.cut("abcdefgh i", 3) == ["abcdefgh ", "i"]
