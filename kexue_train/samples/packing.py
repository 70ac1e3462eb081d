"""Sequences -> rows of exactly ``seq_len`` slots: best-fit decreasing, deterministic.

Source: best-fit packing as in Krell et al., "Efficient sequence packing without cross-contamination" (2021).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.counter_rng import Purpose, random_words


def pack(lengths: npt.NDArray[np.int64], seq_len: int) -> tuple[npt.NDArray[np.int64], int]:
    """The row of each sequence, (n,) int64, and the number of rows.

    From the longest down, each sequence goes into the fullest row that still holds it, else into a new one.
    """
    rows = np.zeros(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    rows_by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set while a row with room for r more tokens exists
    num_rows = 0
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = seq_len, num_rows
            num_rows += 1
        rows[sequence] = row
        if room > length:
            rows_by_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows, num_rows


def permute_rows(rows: npt.NDArray[np.int64], num_rows: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """``rows`` after a uniform random permutation of the row numbers, so that full and joined rows come mixed.

    Args:
        rows: (n,) row of each sequence.
        num_rows: Rows in all.
        seed: The run's seed.
        stream: Which group of rows (a shard, its held-out part).
    """
    words = random_words(seed, Purpose.PACKING, stream, np.arange(num_rows, dtype=np.uint64))
    new_place = np.empty(num_rows, np.int64)
    new_place[np.lexsort(words)] = np.arange(num_rows)
    return new_place[rows]
