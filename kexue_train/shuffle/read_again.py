"""The documents of an input, read again as a finished shuffle read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from kexue_train.corpus.config import FilterConfig
from kexue_train.corpus.filters import drop_reasons
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.foundation.arrow_arrays import to_mask
from kexue_train.shuffle.keys import Words, hash_rows
from kexue_train.shuffle.rows import as_binary


def read_again(source: Source, settings: dict[str, Any]) -> Iterator[RecordBlock]:
    """Yield the documents that a shuffle accepts of ``source``: no rejected records, none that a filter drops.

    Args:
        source: One input.
        settings: Of the manifest of the text shards.
    """
    keys = settings["text_key"]
    options = ReadOptions(
        text_keys=(keys,) if isinstance(keys, str) else tuple(keys),
        keep=tuple(settings["keep"]),
        document=settings["document"],
    )
    filters = FilterConfig.model_validate(settings["filters"])
    for block in read_records(source, options):
        if not len(block.positions):
            continue
        kept = drop_reasons(block.texts, filters) == 0 if filters.is_active else None
        if kept is None or kept.all():
            yield block
            continue
        mask = to_mask(kept)
        extras = None if block.extras is None else block.extras.filter(mask)
        yield RecordBlock(block.positions[kept], block.texts.filter(mask), extras=extras)


def hash_documents(texts: pa.Array, extras: pa.Array | None = None) -> Words:
    """Return the hashes of texts, with ``extras`` those of whole rows: shape (2, n)."""
    return hash_rows(as_binary(texts), extras)
