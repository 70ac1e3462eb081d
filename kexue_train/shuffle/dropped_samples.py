"""A few of the documents that each filter rule dropped, to see what it does: the same ones on any number of workers.

Of each rule those with the smallest hashes are shown, which is as good as chance and asks for no order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.filters import REASONS
from kexue_train.corpus.records import RecordBlock
from kexue_train.foundation.arrow_arrays import to_arrow
from kexue_train.shuffle.keys import hash_rows
from kexue_train.shuffle.rows import as_binary

Samples = dict[str, list[dict[str, Any]]]
"""Reason -> documents, each with ``hash``, number of its ``file``, ``position`` and the beginning of its ``text``."""

SHOWN_PER_RULE = 3
_SHOWN_CHARS = 200


def sample_dropped(block: RecordBlock, reasons: npt.NDArray[np.uint8], file_index: int) -> Samples:
    """Return the samples of the documents of one block of a file that have a reason."""
    rows = np.flatnonzero(reasons)
    high, low = hash_rows(as_binary(block.texts.take(to_arrow(rows))))
    found: Samples = {}
    for reason in np.unique(reasons[rows]).tolist():
        own = np.flatnonzero(reasons[rows] == reason)
        order = own[np.lexsort((low[own], high[own]))]  # stable: of equal documents the first one comes first
        is_new = np.append(True, (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]]))
        best = order[is_new][:SHOWN_PER_RULE]
        found[REASONS[reason - 1]] = [
            {
                "hash": f"{int(high[place]):016x}{int(low[place]):016x}",
                "file": file_index,
                "position": int(block.positions[rows[place]]),
                "text": block.texts[int(rows[place])].as_py()[:_SHOWN_CHARS],
            }
            for place in best.tolist()
        ]
    return found


def join_samples(several: Iterable[Samples]) -> Samples:
    """Return the samples of all blocks together; of equal documents one."""
    joined: dict[str, dict[str, dict[str, Any]]] = {}
    for samples in several:
        for reason, documents in samples.items():
            own = joined.setdefault(reason, {})
            for document in documents:
                first = min(document, own.get(document["hash"], document), key=lambda d: (d["file"], d["position"]))
                own[document["hash"]] = first
    return {reason: [own[key] for key in sorted(own)[:SHOWN_PER_RULE]] for reason, own in sorted(joined.items())}


def name_files(samples: Samples, names: Sequence[str]) -> Samples:
    """Return the samples with the names of their files."""
    return {
        reason: [document | {"file": names[document["file"]]} for document in documents]
        for reason, documents in samples.items()
    }
