from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import rjieba
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kexue_train.samples import encode
from kexue_train.samples.encode import Documents, Encoder, concatenate
from kexue_train.samples.schema import ranges
from kexue_train.samples.sentences import split_sentences

PIECES = st.sampled_from(
    [
        *"。！？ .\n\x00\u0301\u200fאب😀é豈𠀀",
        "walking",
        "Boats ",
        "公园",
        "图书馆",
        "学生",
        "T恤",
        "3.14",
        "[SEP]",
        "[PAD]",
        "##ing",
        "a\u0308",
    ]
)
LONG = st.lists(st.sampled_from([*"。！? \n", "boats", "a" * 30, "公园", "\u0301", "x,", "图书馆"]), max_size=40).map(
    "".join
)
MESSY = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=30).map("".join))


@pytest.fixture
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """As the oracle: it reads special tokens in a text as text, like the encoder."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def words_by_hand(tokenizer: Tokenizer, text: str) -> list[bool]:
    """Word starts sentence by sentence, token by token, straight from the rule."""
    starts = []
    for sentence in split_sentences(text):
        segmented, place = {0}, 0
        for word in rjieba.cut(sentence):
            segmented.add(place)
            place += len(word)
        encoding = tokenizer.encode(sentence, add_special_tokens=False)
        for piece, (begin, _) in zip(encoding.tokens, encoding.offsets, strict=True):
            # The normalizer puts spaces around what it takes for a Chinese character.
            alone = [tokenizer.normalizer.normalize_str(c) for c in sentence[max(0, begin - 1) : begin + 1]]
            both_chinese = len(alone) == 2 and all(len(c) == 3 for c in alone)
            starts.append(not piece.startswith("##") and not (both_chinese and begin not in segmented))
    return starts


def split(documents: Documents) -> list[list[int]]:
    borders = documents.offsets.tolist()
    return [documents.token_ids[a:b].tolist() for a, b in pairwise(borders)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESSY, max_size=5))
def test_tokens_are_those_of_the_whole_documents(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder = Encoder(tokenizer, whole_word=True)
    assert split(encoder.encode(texts)) == [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MESSY)
def test_word_borders_follow_the_rule_in_mixed_text(tokenizer: Tokenizer, text: str) -> None:
    documents = Encoder(tokenizer, whole_word=True).encode([text])
    assert documents.word_starts.tolist() == words_by_hand(tokenizer, text)


def test_words_of_known_text(tokenizer: Tokenizer) -> None:
    text = "孩子们walking去图书馆。"
    documents = Encoder(tokenizer, whole_word=True).encode([text])
    pieces = [tokenizer.id_to_token(i) for i in documents.token_ids.tolist()]
    words: list[str] = []
    for piece, start in zip(pieces, documents.word_starts.tolist(), strict=True):
        words = [*words, piece] if start else [*words[:-1], words[-1] + piece.removeprefix("##")]
    assert words == ["孩子", "们", "walking", "去", "图书馆", "。"]


def test_without_whole_words_every_piece_is_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert Encoder(tokenizer, whole_word=False).encode(texts).word_starts.all()


def test_sentence_starts_are_where_sentences_begin(tokenizer: Tokenizer) -> None:
    texts = ["One boat. Two boats.", "", "\x00", "今天。好！"]
    documents = Encoder(tokenizer, whole_word=True).encode(texts)
    count = [
        len(tokenizer.encode(s, add_special_tokens=False).ids) for s in ("One boat. ", "Two boats.", "今天。", "好！")
    ]
    assert documents.sentence_starts.tolist() == [0, *np.cumsum(count)[:-1].tolist()]
    assert documents.offsets.tolist() == [0, *[count[0] + count[1]] * 3, sum(count)]


def test_special_tokens_written_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    ids = Encoder(tokenizer, whole_word=True).encode(["[CLS] [MASK] boats [SEP] [PAD]"]).token_ids
    assert not np.isin(ids, [tokenizer.token_to_id(t) for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")]).any()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_ranges_are_joined_aranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (
        (np.array(column, np.int64) for column in zip(*pairs, strict=True)) if pairs else (np.zeros(0, np.int64),) * 2
    )
    assert ranges(starts, lengths).tolist() == [i for start, length in pairs for i in range(start, start + length)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LONG, max_size=3))
def test_cutting_long_sentences_changes_no_token_and_no_border(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder = Encoder(tokenizer, whole_word=False)
    whole = encoder.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_PIECE_CHARS", 7)
        patch.setattr(encode, "_BLOCK_CHARS", 11)
        cut = encoder.encode(texts)
    for name in ("token_ids", "offsets", "sentence_starts"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_a_cut_spares_words_where_it_can(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_PIECE_CHARS", 6)
    text = "walking to 公园，图书馆 fast"
    assert Encoder(tokenizer, whole_word=True).encode([text]).word_starts.tolist() == words_by_hand(tokenizer, text)


def test_another_segmenter_gives_other_words(tokenizer: Tokenizer) -> None:
    by_two = Encoder(tokenizer, whole_word=True, segment=lambda text: [text[i : i + 2] for i in range(0, len(text), 2)])
    assert by_two.encode(["公园图书馆里"]).word_starts.tolist() == [True, False] * 3


def test_parts_concatenate_to_the_whole(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder = Encoder(tokenizer, whole_word=True)
    whole, parts = encoder.encode(texts), concatenate(map(encoder.encode, (texts[:7], [], texts[7:])), encoder.dtype)
    for name in ("token_ids", "word_starts", "offsets", "sentence_starts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
        assert getattr(whole, name).dtype == getattr(parts, name).dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "one_word"),
    [("a", True), ("boats ", False), ("图书馆里", False), ("😀", True), ("\x00", False), ("!", False)],
    ids=repr,
)
def test_a_document_of_ten_megabytes_is_encoded_in_bounded_memory(
    tokenizer: Tokenizer, unit: str, one_word: bool
) -> None:
    repeats = 10_000_000 // len(unit.encode())
    # A word without end is unknown, however it is cut.
    expected = [tokenizer.token_to_id("[UNK]")] if one_word else tokenizer.encode(unit).ids[1:-1] * repeats
    encoder, text = Encoder(tokenizer, whole_word=True), unit * repeats
    tracemalloc.start()
    documents = encoder.encode([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents.token_ids.tolist() == expected
    assert documents.offsets.tolist() == [0, len(expected)]
    assert peak < 100_000_000 + 12 * len(text)
