from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.samples import mask_tokens


@pytest.fixture
def dataset(samples: Path) -> SampleDataset:
    return SampleDataset(samples)


def test_slots_are_described_as_by_hand(dataset: SampleDataset) -> None:
    rows = np.arange(len(dataset))[::-1]
    batch, columns = make_batch(dataset, rows, 0, seed=1), dataset.take(rows)
    for i in range(len(rows)):
        sequences, positions, types, labels = [], [], [], []
        for k, length in enumerate(columns["sequence_lengths"][i].tolist()):
            segment_a = columns["segment_a_lengths"][i, k]
            sequences += [k + 1] * length
            positions += list(range(length))
            types += [int(p >= segment_a) for p in range(length)]
            labels += [int(columns["next_sentence_labels"][i, k])] * min(1, length) + [-100] * (length - 1)
        padding = dataset.seq_len - len(sequences)
        assert batch["sequence_ids"][i].tolist() == sequences + [0] * padding
        assert batch["position_ids"][i].tolist() == positions + [0] * padding
        assert batch["token_type_ids"][i].tolist() == types + [0] * padding
        assert batch["next_sentence_labels"][i].tolist() == labels + [-100] * padding


def test_every_sequence_begins_with_cls_at_position_zero(dataset: SampleDataset) -> None:
    rows = np.arange(len(dataset))
    batch, ids = make_batch(dataset, rows, 0, seed=1), dataset.take(rows)["input_ids"]
    begins = (batch["position_ids"] == 0) & (batch["sequence_ids"] > 0)
    np.testing.assert_array_equal(begins, ids == 2)
    assert (ids[batch["token_type_ids"] == 1] != 2).all()
    assert ((batch["next_sentence_labels"] != -100) <= begins).all()
    assert set(np.unique(batch["next_sentence_labels"])) == {-100, 0, 1}


def test_masks_are_those_of_seed_epoch_and_row(dataset: SampleDataset) -> None:
    rows, epochs = np.array([9, 3, 3]), np.array([0, 0, 1])
    batch, columns = make_batch(dataset, rows, epochs, seed=6), dataset.take(rows)
    masked, labels = mask_tokens(
        columns["input_ids"],
        columns["word_starts"],
        seed=6,
        epoch=epochs,
        rows=rows,
        vocab_size=99,
        special_token_ids=dataset.special_token_ids,
    )
    np.testing.assert_array_equal(batch["input_ids"], masked)
    np.testing.assert_array_equal(batch["labels"], labels)


def test_a_row_is_the_same_in_any_batch(dataset: SampleDataset) -> None:
    together = make_batch(dataset, np.array([5, 20, 8]), 2, seed=1)
    alone = make_batch(dataset, np.array([20]), 2, seed=1)
    for name, array in alone.items():
        np.testing.assert_array_equal(together[name][1], array[0])
        assert array.dtype == np.int64
        assert array.shape == (1, dataset.seq_len)


def test_padding_is_never_predicted(dataset: SampleDataset) -> None:
    batch = make_batch(
        dataset, np.arange(len(dataset)), 0, seed=1, mask_probability=1.0, keep_probability=0.0, random_probability=0.0
    )
    ordinary = (batch["sequence_ids"] > 0) & (batch["input_ids"] == 4)
    np.testing.assert_array_equal(batch["labels"] != -100, ordinary)
