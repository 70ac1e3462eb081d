"""How many tokens of each source of a mixture the sample rows hold, exactly: a row may have sequences of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.samples.nsp import IS_RANDOM, NO_PAIR
from kexue_train.samples.schema import RAGGED_COLUMNS, SOURCE_COLUMNS, column_values

COUNTED = ("rows", "sequences", "document_tokens", "copied_tokens", "heldout_rows", "heldout_tokens")
"""What is counted. To train on: rows with any text of the source, sequences whose A is of it, the tokens of its
documents, which are those of A and true Bs, and those that stand once more as B of another document. Held out: rows
with any text of it, and all of its tokens. [CLS] and [SEP] are no source's."""


class SourceTokens:
    """Sums over rows by source.

    Attributes:
        names: The sources; none without a mixture.
        counts: (6, sources) int64: ``COUNTED`` of each.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.counts = np.zeros((len(COUNTED), len(self.names)), np.int64)

    def add(self, batch: pa.RecordBatch, *, is_heldout: bool) -> None:
        """Count the rows of ``batch``."""
        if not self.names or not batch.num_rows:
            return
        columns = {name: column_values(batch.column(name)) for name in (*RAGGED_COLUMNS, *SOURCE_COLUMNS)}
        lengths, segment_a, labels, a_sources, b_sources = (values.astype(np.int64) for values, _ in columns.values())
        borders = columns[RAGGED_COLUMNS[0]][1]
        b_tokens = np.where(labels == NO_PAIR, 0, lengths - segment_a - 1)
        own = self._sum(a_sources, segment_a - 2) + self._sum(b_sources, np.where(labels == IS_RANDOM, 0, b_tokens))
        copied = self._sum(b_sources, np.where(labels == IS_RANDOM, b_tokens, 0))
        row = np.repeat(np.arange(batch.num_rows), np.diff(borders))
        holds = np.zeros((batch.num_rows, len(self.names)), bool)
        holds[row, a_sources] = holds[row, b_sources] = True
        rows = holds.sum(0)
        if is_heldout:
            self._count(heldout_rows=rows, heldout_tokens=own + copied)
        else:
            sequences = self._sum(a_sources, np.ones_like(a_sources))
            self._count(rows=rows, sequences=sequences, document_tokens=own, copied_tokens=copied)

    def describe(self) -> dict[str, dict[str, int]]:
        """Return the counts by name of the source."""
        return {
            name: dict(zip(COUNTED, self.counts[:, number].tolist(), strict=True))
            for number, name in enumerate(self.names)
        }

    def _sum(self, sources: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        sums = np.zeros(len(self.names), np.int64)
        np.add.at(sums, sources, values)
        return sums

    def _count(self, **found: npt.NDArray[np.int64]) -> None:
        for name, values in found.items():
            self.counts[COUNTED.index(name)] += values


def count_documents(
    numbers: npt.NDArray[np.int64], heldout: int, is_copy: npt.NDArray[np.bool_] | None, num_sources: int
) -> dict[str, list[int]]:
    """Return by source the documents of a shard, those held out, and those left out of training as copies of such.

    Args:
        numbers: (documents,) the source of each.
        heldout: So many first documents are held out.
        is_copy: (documents,) which are copies of held-out ones; None: they are not looked for.
        num_sources: Sources in all.
    """
    left_out = numbers[:0] if is_copy is None else numbers[is_copy]
    return {
        name: np.bincount(chosen, minlength=num_sources).tolist()
        for name, chosen in (
            ("documents", numbers),
            ("heldout_documents", numbers[:heldout]),
            ("left_out_documents", left_out),
        )
    }


def describe_documents(
    names: Sequence[str], results: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, int]]:
    """Return by source what ``count_documents`` counted in all shards."""
    return {
        name: {what: sum(found[what][number] for found in results) for what in results[0]}
        for number, name in enumerate(names)
    }
