from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.batches import order, rows_of_step
from kexue_train.batches.order import rows_at
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError
from tests.batches.epochs import epochs_of_step

SEEDS = st.integers(0, 2**32 - 1)


@contextmanager
def blocks_of(rows: int, blocks_per_group: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_ROWS", rows)
        patch.setattr(order, "GROUP_ROWS", rows * blocks_per_group)
        yield


def epoch(number: int, total: int, seed: int) -> np.ndarray:
    return rows_at(np.arange(number * total, (number + 1) * total), total, seed)[0]


def stream(total: int, seed: int, batch: int, num_rows: int) -> np.ndarray:
    """The first ``num_rows`` rows in the order in which they are trained on."""
    return np.concatenate([rows_of_step(total, seed, batch, step) for step in range(-(-num_rows // batch))])[:num_rows]


@settings(max_examples=50)
@given(st.integers(1, 150), SEEDS, st.integers(10, 400))
def test_every_epoch_reads_every_row_once(total: int, seed: int, batch: int) -> None:
    epochs = stream(total, seed, batch, 4 * total).reshape(4, total)
    assert (np.sort(epochs, axis=1) == np.arange(total)).all()
    np.testing.assert_array_equal(epochs[0], np.arange(total))


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 4), (7, 3)])
def test_every_epoch_reads_every_row_once_whatever_is_left_over_of_blocks_and_groups(rows: int, blocks: int) -> None:
    with blocks_of(rows, blocks):
        for total in range(1, 34):
            assert sorted(epoch(1 + total % 3, total, total).tolist()) == list(range(total))


@settings(max_examples=40)
@given(st.integers(1, 300), SEEDS, st.integers(1, 700), st.integers(0, 20))
def test_the_order_does_not_depend_on_the_batch_size(total: int, seed: int, batch: int, step: int) -> None:
    with blocks_of(8, 5):
        one_by_one = [rows_of_step(total, seed, 1, i)[0] for i in range(step * batch, step * batch + min(batch, 20))]
        assert rows_of_step(total, seed, batch, step)[:20].tolist() == one_by_one


@settings(max_examples=30)
@given(st.integers(20, 300), st.integers(1, 700), st.integers(0, 20))
def test_epochs_are_counted_row_by_row(total: int, batch: int, step: int) -> None:
    epochs = [i // total for i in range(step * batch, (step + 1) * batch)]
    assert epochs_of_step(total, batch, step).tolist() == epochs
    assert rows_at(np.arange(step * batch, (step + 1) * batch), total, 1)[1].tolist() == epochs


@pytest.mark.parametrize("total", [1000, 300_001])
def test_epochs_seeds_and_folders_have_orders_of_their_own(total: int) -> None:
    positions = np.arange(total, total + 1000)
    orders = [rows_at(positions, total, 1), rows_at(positions + total, total, 1)]
    orders += [rows_at(positions, total, 2), rows_at(positions, total, 1, folder=1)]
    assert len({rows.tobytes() for rows, _ in orders}) == 4


def chi_square(counts: np.ndarray) -> float:
    expected = counts.mean()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("rows", "blocks"), [(4, 2), (1024, 128)])
def test_over_many_epochs_every_row_is_equally_often_at_every_place(rows: int, blocks: int) -> None:
    # 13 rows: one group, or three blocks and a rest in two groups.
    with blocks_of(rows, blocks):
        counts = np.zeros((13, 13))
        for number in range(1, 521):
            counts[np.arange(13), epoch(number, 13, 5)] += 1
    # 12 · 12 degrees of freedom: 200 is exceeded once in a thousand seeds.
    assert chi_square(counts) < 200


def test_up_to_one_group_all_orders_are_about_equally_likely() -> None:
    orders = [tuple(epoch(number, 4, 3).tolist()) for number in range(1, 721)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts) < 49.7  # 23 degrees of freedom, once in a thousand


def test_memory_holds_one_group_and_it_is_read_in_whole_blocks() -> None:
    total, block, group = 1_000_003, order.BLOCK_ROWS, order.GROUP_ROWS
    rows = epoch(1, total, 9)
    for first in range(0, total, group):
        found = np.sort(rows[first : first + group])
        pieces = 1 + np.count_nonzero(np.diff(found) > 1)
        assert pieces <= -(-len(found) // block) + 1  # the block over the end of the data is in two
    inside = rows[:group]
    assert abs(np.corrcoef(inside, np.arange(group))[0, 1]) < 0.02
    assert np.median(np.abs(np.diff(inside))) > total / 10


def test_the_borders_of_blocks_differ_between_epochs() -> None:
    with blocks_of(10, 1):  # a group is a block
        blocks = [rows_at(np.arange(number * 200, number * 200 + 10), 200, 1)[0] for number in range(1, 40)]
    assert len({int(block.min()) % 10 for block in blocks if np.ptp(block) == 9}) > 5


def test_held_out_rows_are_never_trained_on(samples: Path) -> None:
    manifest = read_manifest(samples)
    num_training = manifest.rows - 4
    epochs = [rows_of_step(manifest, 5, num_training, step) for step in range(3)]
    assert all(sorted(rows.tolist()) == list(range(4, manifest.rows)) for rows in epochs)


def test_a_batch_larger_than_the_data_takes_several_epochs() -> None:
    rows = rows_of_step(3, 1, 7, 0)
    assert rows[:3].tolist() == [0, 1, 2]
    assert sorted(rows[3:6].tolist()) == [0, 1, 2]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ArtifactError, match="at least one is needed"):
        rows_of_step(0, 1, 8, 0)
    with pytest.raises(ValueError, match="global_batch_size=0"):
        rows_of_step(8, 1, 0, 0)
