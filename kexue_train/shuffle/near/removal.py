"""Which documents a cluster of near-duplicates loses, told to the gather tasks by shard: all but the first.

The first document in the order of the corpus stays, that is the order of the inputs as they are found, and in a file
the order of its records.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.write_behind import new_file
from kexue_train.shuffle.keys import Words, bucket_of, content_keys

VERDICT = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("file", "<u4"),
        ("kept_file", "<u4"),
        ("position", "<u8"),
        ("kept_position", "<u8"),
        ("copy", "<u2"),
        ("shown", "<u2"),
        ("is_removed", "<u2"),
    ]
)
"""Of a text: its hash, where it stands and where the one that is kept instead, the number of the copy (its file may be
taken several times), and 1 + the rank of its cluster if the report shows it."""


def write_verdicts(folder: Path, verdicts: npt.NDArray[np.void], num_shards: int, max_copies: int, seed: int) -> None:
    """Write for each shard what becomes of texts that may be in it, ordered by hash.

    Args:
        folder: Where to.
        verdicts: Shape (n,), of the first copies.
        num_shards: S.
        max_copies: How often a document is taken at most.
        seed: That of the shuffle: it says in which shard a copy is.
    """
    hashes = np.stack([verdicts["high"], verdicts["low"]]).astype(np.uint64)
    shards = [bucket_of(content_keys(seed, hashes, copy), num_shards) for copy in range(max_copies)]
    for shard in range(num_shards):
        parts = []
        for copy, shard_of in enumerate(shards):
            part = verdicts[shard_of == shard]
            part["copy"] = copy
            parts.append(part[part["is_removed"] > 0] if copy else part)
        found = np.concatenate(parts)
        # A text whose copies are in one shard needs one verdict there.
        order = np.lexsort((found["copy"], found["low"], found["high"]))
        found = found[order]
        with new_file(verdicts_path(folder, shard)) as file:
            file.write(found.tobytes())


def verdicts_path(folder: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard-{shard:06d}.verdicts"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What becomes of some texts of a shard."""

    entries: npt.NDArray[np.void]
    """By hash."""

    @classmethod
    def read(cls, folder: Path, shard: int) -> Verdicts:
        """Read those of a shard."""
        return cls(np.fromfile(verdicts_path(folder, shard), VERDICT))

    def find(self, hashes: Words) -> npt.NDArray[np.int64]:
        """Return the entry of each text by its hash, shape (n,); -1: there is none."""
        high, low = self.entries["high"], self.entries["low"]
        places = np.searchsorted(high, hashes[0])
        found = np.full(len(places), -1)
        for _ in range(len(high)):  # once or twice: entries with an equal half follow each other
            is_near = places < len(high)
            is_near[is_near] = high[places[is_near]] == hashes[0][is_near]
            if not is_near.any():
                break
            is_hit = is_near.copy()
            is_hit[is_near] = low[places[is_near]] == hashes[1][is_near]
            found[is_hit & (found < 0)] = places[is_hit & (found < 0)]
            if (found[is_near] >= 0).all():
                break
            places[is_near] += 1
        return found
