from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kexue_train.batches import rows_of_step
from kexue_train.batches.collate import Batch, make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import iter_batches
from kexue_train.batches.order import epochs_of_step

GLOBAL = 24
STEPS = 5  # more than an epoch


@pytest.fixture
def dataset(samples: Path) -> SampleDataset:
    return SampleDataset(samples)


def batches(dataset: SampleDataset, rank: int, world: int, accumulation: int, start: int, steps: int) -> list[Batch]:
    iterator = iter_batches(
        dataset,
        seed=2,
        start_step=start,
        rank=rank,
        world_size=world,
        micro_batch_size=GLOBAL // world // accumulation,
        accumulation_steps=accumulation,
        global_batch_size=GLOBAL,
    )
    found = list(islice(iterator, steps * accumulation))
    iterator.close()
    return found


def expected(dataset: SampleDataset, step: int) -> Batch:
    rows, epochs = rows_of_step(dataset.manifest, 2, GLOBAL, step), epochs_of_step(dataset.manifest, GLOBAL, step)
    return make_batch(dataset, rows, epochs, seed=2)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 2), (3, 4), (8, 3)])
def test_the_global_batches_are_the_same_on_any_number_of_ranks(
    dataset: SampleDataset, world: int, accumulation: int
) -> None:
    ranks = [batches(dataset, rank, world, accumulation, 0, STEPS) for rank in range(world)]
    for step in range(STEPS):
        parts = [ranks[rank][step * accumulation + j] for j in range(accumulation) for rank in range(world)]
        for name, array in expected(dataset, step).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_a_run_goes_on_at_any_step_with_other_ranks(dataset: SampleDataset) -> None:
    resumed = [batches(dataset, rank, 2, 3, 3, 2) for rank in range(2)]
    for step in (3, 4):
        parts = [resumed[rank][(step - 3) * 3 + j] for j in range(3) for rank in range(2)]
        joined = np.concatenate([part["input_ids"] for part in parts])
        np.testing.assert_array_equal(joined, expected(dataset, step)["input_ids"])


def test_closing_ends_the_thread(dataset: SampleDataset) -> None:
    before = threading.active_count()
    assert len(batches(dataset, 0, 1, 1, 0, 2)) == 2
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_raised_here(dataset: SampleDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: np.ndarray) -> dict:
        raise OSError("disk gone")

    monkeypatch.setattr(dataset, "take", fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        batches(dataset, 0, 1, 1, 0, 1)
    assert threading.active_count() == before


@pytest.mark.parametrize("change", [{"micro_batch_size": 5}, {"rank": 2}, {"rank": -1}, {"global_batch_size": 25}])
def test_sizes_that_do_not_multiply_out_are_refused(dataset: SampleDataset, change: dict) -> None:
    sizes = {"rank": 0, "world_size": 2, "micro_batch_size": 4, "accumulation_steps": 3, "global_batch_size": 24}
    with pytest.raises(ValueError, match="must be micro_batch_size"):
        iter_batches(dataset, seed=2, start_step=0, **(sizes | change))
