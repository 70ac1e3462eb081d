"""A batch with a label per slot, which can be compared row by row however the rows are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kexue_train.batches.collate import Batch

STRUCTURE = ("input_ids", "sequence_ids", "position_ids", "token_type_ids")


def dense(batch: Batch) -> dict[str, np.ndarray]:
    """Arrays (B, S): the inputs, and ``labels`` and ``pairs`` with -100 where nothing is predicted."""
    result = {name: batch[name] for name in STRUCTURE}
    for name, task in (("labels", "prediction"), ("pairs", "pair")):
        slots, labels = batch[f"{task}_slots"], batch[f"{task}_labels"]
        result[name] = np.full(batch["input_ids"].shape, -100)
        result[name].ravel()[slots[labels != -100]] = labels[labels != -100]
    return result


def join(batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Those of several batches, one after the other."""
    parts = [dense(batch) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
