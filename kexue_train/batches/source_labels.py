"""What is to be predicted of each source of a mixture, so that held-out rows are scored by source too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.batches.collate import PREDICTION, Batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.samples.mlm import IGNORE_INDEX

SOURCE_LABELS = "source_labels"
"""Key of the labels by source in a held-out batch: (sources, P), and otherwise as ``prediction_labels``."""


def label_by_source(
    dataset: SampleDataset, rows: npt.NDArray[np.integer[Any]], batch: Batch
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the prediction labels of each source alone, -100 where a piece is of another; nothing without sources.

    Args:
        dataset: Samples of a mixture.
        rows: (B,) the rows of ``batch``.
        batch: As ``make_batch`` gives it.
    """
    if not dataset.sources:
        return {}
    columns = dataset.take(rows)
    slots, labels = batch[PREDICTION.slots], batch[PREDICTION.labels]  # type: ignore[literal-required]  # named there
    row, sequence = slots // dataset.seq_len, batch["sequence_ids"].ravel()[slots] - 1
    is_b = batch["token_type_ids"].ravel()[slots] == 1
    sources = np.where(is_b, columns["segment_b_sources"][row, sequence], columns["segment_a_sources"][row, sequence])
    of_source = sources == np.arange(len(dataset.sources))[:, None]
    return {SOURCE_LABELS: np.where(of_source, labels, IGNORE_INDEX)}
