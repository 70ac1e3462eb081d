"""The part of the first pass that near duplicates need: signs the documents of a scatter task, files their bands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_arrays import make_binary, to_arrow
from kexue_train.foundation.artifacts import file_checksum
from kexue_train.shuffle.keys import Words, bucket_of, distinct_hashes
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.documents import DocumentFiles, DocumentWriter, number_documents
from kexue_train.shuffle.near.minhash import sign
from kexue_train.shuffle.rows import Rows
from kexue_train.shuffle.spill import SpillIndex, SpillReader, SpillWriter

SIGNED_SUFFIXES = (".bands", ".documents", ".samples")
"""What is added to the name of a spill file for the files beside it."""
_NUMBER_BYTES = 8
_SLICE = 4096
"""So many documents are signed at a time: it bounds the memory for their hashes."""


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """The files that a scatter task left beside its spill file."""

    index: SpillIndex
    """Of the file of bands: rows whose key is a band's key and whose text is a document's number."""
    documents: DocumentFiles

    def are_whole(self, folder: Path, spill: str, *, read: bool) -> bool:
        """Return whether the files are there; with ``read``, whether their contents are what was written."""
        bands, table, samples = signed_paths(folder, spill)
        expected = self.documents
        if not (
            bands.exists()
            and table.exists()
            and samples.exists()
            and table.stat().st_size == expected.table_bytes
            and samples.stat().st_size == expected.samples_bytes
        ):
            return False
        if not read:
            return True
        with SpillReader(bands, self.index) as reader:
            return (
                reader.is_whole()
                and file_checksum(table) == expected.table_checksum
                and file_checksum(samples) == expected.samples_checksum
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what ``to_json`` gave."""
        return cls(SpillIndex(**values["index"]), DocumentFiles(**values["documents"]))


def signed_paths(folder: Path, spill: str) -> tuple[Path, Path, Path]:
    """Return the files of bands, documents and samples of the attempt that wrote ``spill``."""
    bands, documents, samples = (folder / f"{spill}{suffix}" for suffix in SIGNED_SUFFIXES)
    return bands, documents, samples


class Signer:
    """Signs the documents of one scatter task."""

    def __init__(
        self,
        near: NearConfig,
        *,
        seed: int,
        task: int,
        num_buckets: int,
        buffer_bytes: int,
        fits_memory: bool,
        folder: Path,
        spill: str,
    ) -> None:
        self._near, self._seed, self._task, self._num_buckets = near, seed, task, num_buckets
        self._paths = signed_paths(folder, spill)
        bands, table, samples = self._paths
        self._bands = SpillWriter(bands, num_buckets, buffer_bytes, fits_memory=fits_memory)
        self._documents = DocumentWriter(table, samples, fits_memory=fits_memory)

    def add(
        self, file_index: int, positions: npt.NDArray[np.uint64], texts: pa.LargeBinaryArray, contents: Words
    ) -> None:
        """Sign the documents of a block; ``contents`` are the hashes of their texts."""
        for start in range(0, len(texts), _SLICE):
            part = slice(start, start + _SLICE)
            self._add(file_index, positions[part], texts[part], contents[:, part])

    def _add(
        self, file_index: int, positions: npt.NDArray[np.uint64], texts: pa.LargeBinaryArray, contents: Words
    ) -> None:
        """Sign some documents; equal texts are signed once."""
        distinct, sample_of = distinct_hashes(contents)
        signed = sign(texts if len(distinct) == len(texts) else texts.take(to_arrow(distinct)), self._near, self._seed)
        first = self._documents.count
        self._documents.add(file_index, positions, contents, signed.samples, sample_of)
        has_grams = np.diff(signed.samples.bounds)[sample_of] > 0
        numbers = number_documents(self._task, first, len(positions))[has_grams]
        keys = signed.keys[sample_of[has_grams]].ravel()
        values = np.repeat(numbers, self._near.bands).astype("<u8")
        lengths = np.full(len(values), _NUMBER_BYTES, np.int64)
        if len(keys):
            rows = Rows(keys, make_binary(lengths, values.view(np.uint8)))
            self._bands.add(rows, bucket_of(keys, self._num_buckets))

    def finish(self) -> SignedFiles:
        """Write what is held."""
        return SignedFiles(self._bands.finish(), self._documents.finish())

    def close(self) -> None:
        """Close the files as they are."""
        self._bands.close()
        self._documents.close()

    def discard(self) -> None:
        """Delete the files."""
        for path in self._paths:
            path.unlink(missing_ok=True)
