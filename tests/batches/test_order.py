from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.artifacts import read_manifest
from kexue_train.batches import rows_of_step
from kexue_train.batches.order import epochs_of_step
from kexue_train.errors import ArtifactError

SEEDS = st.integers(0, 2**32 - 1)


def stream(total: int, seed: int, batch: int, num_rows: int) -> np.ndarray:
    """The first ``num_rows`` rows in the order in which they are trained on."""
    return np.concatenate([rows_of_step(total, seed, batch, step) for step in range(-(-num_rows // batch))])[:num_rows]


@settings(max_examples=50)
@given(st.integers(1, 150), SEEDS, st.integers(10, 400))
def test_every_epoch_reads_every_row_once(total: int, seed: int, batch: int) -> None:
    epochs = stream(total, seed, batch, 4 * total).reshape(4, total)
    assert (np.sort(epochs, axis=1) == np.arange(total)).all()
    np.testing.assert_array_equal(epochs[0], np.arange(total))


@settings(max_examples=40)
@given(st.integers(1, 300), SEEDS, st.integers(1, 700), st.integers(0, 20))
def test_the_order_does_not_depend_on_the_batch_size(total: int, seed: int, batch: int, step: int) -> None:
    one_by_one = [rows_of_step(total, seed, 1, i)[0] for i in range(step * batch, step * batch + min(batch, 20))]
    assert rows_of_step(total, seed, batch, step)[:20].tolist() == one_by_one


@given(st.integers(1, 300), st.integers(1, 700), st.integers(0, 20))
def test_epochs_are_counted_row_by_row(total: int, batch: int, step: int) -> None:
    assert epochs_of_step(total, batch, step).tolist() == [i // total for i in range(step * batch, (step + 1) * batch)]


def test_rows_land_everywhere_in_later_epochs() -> None:
    rows = rows_of_step(1000, 1, 1000, 1)
    assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.15
    assert (rows != rows_of_step(1000, 1, 1000, 2)).any()
    assert (rows != rows_of_step(1000, 2, 1000, 1)).any()


def test_held_out_rows_are_never_trained_on(samples: Path) -> None:
    manifest = read_manifest(samples)
    num_training = manifest.rows - 4
    epochs = [rows_of_step(manifest, 5, num_training, step) for step in range(3)]
    assert all(sorted(rows.tolist()) == list(range(4, manifest.rows)) for rows in epochs)


def test_a_batch_larger_than_the_data_takes_several_epochs() -> None:
    rows, epochs = rows_of_step(3, 1, 8, 0), epochs_of_step(3, 8, 0)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(rows[3:6].tolist()) == [0, 1, 2]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ArtifactError, match="at least one is needed"):
        rows_of_step(0, 1, 8, 0)
    with pytest.raises(ValueError, match="global_batch_size=0"):
        rows_of_step(8, 1, 0, 0)
