"""Gathers records that come one at a time into blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from kexue_train.corpus.fields import pick_extras, pick_text
from kexue_train.corpus.options import ReadOptions
from kexue_train.corpus.records import RecordBlock, Rejected, make_block, reject
from kexue_train.foundation.errors import CorpusError

_RECORD_BYTES = 100  # what a record weighs beside its text, so that a block of short ones stays small too


class BlockBuilder:
    """Gathers records in the order of their positions; ``build`` gives them as a block and begins the next."""

    def __init__(self, options: ReadOptions) -> None:
        self._text_keys, self._keep = options.text_keys, options.keep
        self._begin()

    def _begin(self) -> None:
        self._positions: list[int] = []
        self._texts: list[str] = []
        self._extras: list[bytes] = []
        self._rejected: list[Rejected] = []
        self._blank = 0
        self.num_bytes = 0
        """About how much is held."""

    def add(self, position: int, record: object, raw: bytes | None = None) -> None:
        """Take the text out of ``record``; ``raw`` is how it stands in the file, if that is at hand."""
        text = pick_text(record, self._text_keys)
        if isinstance(text, str):
            self._positions.append(position)
            self._texts.append(text)
            self.num_bytes += len(text) + _RECORD_BYTES
            if self._keep:
                self._extras.append(pick_extras(record, self._keep))
                self.num_bytes += len(self._extras[-1])
        else:
            raw = raw or json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")
            self.reject(reject(position, *text, raw.strip()))

    def add_text(self, position: int, text: str) -> None:
        """Take a text as it is."""
        self._positions.append(position)
        self._texts.append(text)
        self.num_bytes += len(text) + _RECORD_BYTES

    def reject(self, rejected: Rejected) -> None:
        """Take note of a record that cannot be used."""
        self._rejected.append(rejected)
        self.num_bytes += len(rejected.raw) + _RECORD_BYTES

    def add_blank(self) -> None:
        """Count a record that holds nothing."""
        self._blank += 1

    def build(self) -> RecordBlock:
        """The records since the last call."""
        block = make_block(
            np.array(self._positions, np.uint64),
            _as_array(self._texts),
            self._rejected,
            extras=pa.array(self._extras, pa.large_binary()) if self._keep else None,
            blank=self._blank,
            is_utf8=True,
        )
        self._begin()
        return block


def reject_only(rejected: Rejected, options: ReadOptions) -> RecordBlock:
    """A block of no text and one refusal."""
    nothing = pa.array([], pa.large_binary())
    texts = nothing if options.raw else nothing.view(pa.large_string())
    return RecordBlock(np.zeros(0, np.uint64), texts, [rejected], 0, nothing if options.keep else None)


def _as_array(texts: list[str]) -> pa.LargeStringArray:
    # Of encoded texts Arrow makes an array twice as fast as of strings, whose UTF-8 form it has each of them keep.
    return pa.array([text.encode() for text in texts], pa.large_binary()).view(pa.large_string())


def gather_blocks(steps: Iterator[None], builder: BlockBuilder, block_bytes: int) -> Iterator[RecordBlock]:
    """Yield blocks of about ``block_bytes`` while ``steps`` fills ``builder``.

    What came before an error is yielded before the error is raised: a damaged file gives all its whole records.
    """
    try:
        for _ in steps:
            if builder.num_bytes >= block_bytes:
                yield builder.build()
    except CorpusError:
        yield builder.build()
        raise
    yield builder.build()
