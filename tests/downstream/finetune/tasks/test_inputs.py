"""Sequences and batches for a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.downstream.sequences import Reader
from tests.downstream.evaluate.zero_shot.tiny_models import VOCABULARY, make_tokenizer

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_tokens_are_found_again_in_their_text(tokenizer):
    text = "a Bc 东京!"
    [spelled] = Reader(tokenizer, 32).spell([text])
    assert [text[start:end] for start, end in spelled.spans] == ["a", "B", "c", "东", "京", "!"]


def test_unknown_tokens_are_counted(tokenizer):
    reader = Reader(tokenizer, 32)
    reader.spell(["a b !", "é ß c"])
    assert reader.unknown_rate == pytest.approx(2 / 6)  # é is read as e


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 40), st.booleans())
def test_a_pair_fits_and_loses_ends_only(size_a, size_b, max_length, keep_second):
    reader = Reader(make_any_tokenizer(), max_length)
    first, second = np.arange(100, 100 + size_a), np.arange(200, 200 + size_b)
    sequence = reader.join(first, second, keep_second=keep_second)
    ids = sequence.ids.tolist()
    [one, two] = [i for i, token in enumerate(ids) if token == SEP]
    assert ids[0] == CLS
    assert (two, sequence.second_starts) == (len(ids) - 1, one + 1)
    kept_a, kept_b = ids[1:one], ids[one + 1 : two]
    assert kept_a == first[: len(kept_a)].tolist()
    assert kept_b == second[: len(kept_b)].tolist()
    assert len(ids) == min(max_length, size_a + size_b + 3)
    assert reader.num_cut == (size_a + size_b + 3 > max_length)
    if keep_second:
        assert len(kept_b) == min(size_b, max_length - 3)
    elif reader.num_cut:  # the longer one loses first: no more than one longer than the other, or the shorter is whole
        assert abs(len(kept_a) - len(kept_b)) <= 1 or min(size_a, size_b) == min(len(kept_a), len(kept_b))


def make_any_tokenizer():
    class Special:
        cls_token_id, sep_token_id, pad_token_id = CLS, SEP, 0

    return Special()


def test_segments_padding_and_batches():
    reader = Reader(make_any_tokenizer(), 16)
    sequences = [reader.join(np.array([7, 8]), np.array([9])), reader.join(np.array([7]))]
    batch = reader.batch(sequences, CPU)
    assert batch["input_ids"].tolist() == [[CLS, 7, 8, SEP, 9, SEP], [CLS, 7, SEP, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6]
    one_segment = Reader(make_any_tokenizer(), 16, one_segment=True)
    assert not one_segment.batch(sequences, CPU)["token_type_ids"].any()


def test_batches_hold_every_sequence_once():
    reader = Reader(make_any_tokenizer(), 600)
    sequences = [reader.join(np.arange(size)) for size in (5, 500, 7, 3, 400, 300, 550, 1)]
    found = [
        (place, int(row.sum()))
        for places, batch in reader.in_batches(sequences, CPU)
        for place, row in zip(places, batch["attention_mask"], strict=True)
    ]
    assert sorted(found) == [(place, len(sequence.ids)) for place, sequence in enumerate(sequences)]
