from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kexue_train.batches import collate
from kexue_train.batches.collate import make_batch, sequence_starts, starts_capacity
from kexue_train.batches.dataset import SampleDataset
from kexue_train.samples import mask_tokens
from kexue_train.samples.mlm import MaskingRates
from tests.batches.dense import STRUCTURE, assert_same, dense


@pytest.fixture
def dataset(samples: Path) -> SampleDataset:
    return SampleDataset(samples)


def test_slots_are_described_as_by_hand(dataset: SampleDataset) -> None:
    rows = np.arange(len(dataset))[::-1]
    batch, columns = dense(make_batch(dataset, rows, 0, seed=1)), dataset.take(rows)
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
        assert batch["pairs"][i].tolist() == labels + [-100] * padding


@pytest.mark.parametrize("rows", [[0], [3, 1, 4, 1, 5], list(range(20))])
def test_starts_are_where_sequences_and_padding_begin_and_of_one_size(dataset: SampleDataset, rows: list[int]) -> None:
    batch = make_batch(dataset, np.array(rows), 0, seed=1)
    ids, starts = batch["sequence_ids"], batch["sequence_starts"]
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    expected = np.flatnonzero(begins)
    assert starts.dtype == np.int32
    assert starts[: len(expected)].tolist() == expected.tolist()
    assert set(starts[len(expected) :].tolist()) == {ids.size}
    assert len(starts) == starts_capacity(len(rows), dataset.seq_len, dataset.mean_per_row("sequences"))


def test_more_sequences_than_expected_take_one_more_step() -> None:
    lengths = np.full((2, 50), 2)
    starts = sequence_starts(lengths, 101, 64)
    assert len(starts) == 128 + 1
    assert starts[:3].tolist() == [0, 2, 4]
    assert starts[49:53].tolist() == [98, 100, 101, 103]
    assert set(starts[102:].tolist()) == {202}
    assert len(sequence_starts(lengths, 101, 103)) == 103


def test_every_sequence_begins_with_cls_at_position_zero(dataset: SampleDataset) -> None:
    rows = np.arange(len(dataset))
    batch, ids = dense(make_batch(dataset, rows, 0, seed=1)), dataset.take(rows)["input_ids"]
    begins = (batch["position_ids"] == 0) & (batch["sequence_ids"] > 0)
    np.testing.assert_array_equal(begins, ids == 2)
    assert (ids[batch["token_type_ids"] == 1] != 2).all()
    assert ((batch["pairs"] != -100) <= begins).all()
    assert set(np.unique(batch["pairs"])) == {-100, 0, 1}


def test_masks_are_those_of_seed_epoch_and_row(dataset: SampleDataset) -> None:
    rows, epochs = np.array([9, 3, 3]), np.array([0, 0, 1])
    batch, columns = dense(make_batch(dataset, rows, epochs, seed=6)), dataset.take(rows)
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
    together = dense(make_batch(dataset, np.array([5, 20, 8]), 2, seed=1))
    alone = dense(make_batch(dataset, np.array([20]), 2, seed=1))
    assert_same(alone, {name: array[1:2] for name, array in together.items()})


def test_all_other_arrays_are_int64_and_all_of_shapes_that_do_not_depend_on_rows_or_epochs(
    dataset: SampleDataset,
) -> None:
    def shapes(rows: list[int], epoch: int) -> dict[str, tuple]:
        batch = make_batch(dataset, np.array(rows), epoch, seed=1)
        assert {array.dtype for name, array in batch.items() if name != "sequence_starts"} == {np.dtype(np.int64)}
        return {name: array.shape for name, array in batch.items()}

    first = shapes([0, 1, 2, 3], 0)
    assert all(first[name] == (4, 30) for name in STRUCTURE)
    assert all(shapes([i, i + 1, 2 * i, 5], i) == first for i in range(12))


def test_more_predictions_than_slots_make_more_slots_and_change_no_mask(
    dataset: SampleDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, rates = np.arange(len(dataset)), MaskingRates(0.6, 0.2, 0.1)
    roomy = make_batch(dataset, rows, 0, seed=1, rates=rates)
    monkeypatch.setattr(collate, "prediction_capacity", lambda *_: 64)
    monkeypatch.setattr(collate, "pair_capacity", lambda *_: 1)
    tight = make_batch(dataset, rows, 0, seed=1, rates=rates)
    assert 64 < len(tight["prediction_slots"]) < len(roomy["prediction_slots"])
    assert_same(dense(tight), dense(roomy))


def test_padding_is_never_predicted(dataset: SampleDataset) -> None:
    batch = dense(make_batch(dataset, np.arange(len(dataset)), 0, seed=1, rates=MaskingRates(1.0, 0.0, 0.0)))
    ordinary = (batch["sequence_ids"] > 0) & (batch["input_ids"] == 4)
    np.testing.assert_array_equal(batch["labels"] != -100, ordinary)
