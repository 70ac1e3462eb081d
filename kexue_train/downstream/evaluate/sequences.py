"""Token sequences of any lengths -> padded batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def tokens_at_once(device: Any) -> int:
    """Slots scored at once on a torch device: many fill a GPU; a CPU is a quarter faster if states fit its cache."""
    return 1 << 11 if device.type == "cpu" else 1 << 14


def encode(tokenizer: Any, strings: Sequence[str]) -> list[Ids]:
    """The tokens of every string, without special ones."""
    if not strings:
        return []
    encoded = tokenizer(
        list(strings),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no advice on long texts: who cuts them counts them
    )
    return [np.array(ids, np.int64) for ids in encoded["input_ids"]]


def batches(lengths: Ids, tokens_per_batch: int) -> Iterator[Ids]:
    """Places in ``lengths`` (n,), the longest first, as many at once as fit ``tokens_per_batch``, padding included.

    Similar lengths together leave little padding; the longest first, too little memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def padded(sequences: Sequence[Ids], fill: int) -> Ids:
    """(B, S), ``fill`` after the end of each."""
    rows = np.full((len(sequences), max(map(len, sequences))), fill, np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows
