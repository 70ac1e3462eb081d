"""The documents of an input, read again as a finished shuffle read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from kexue_train.corpus.config import FilterConfig, NamedSource
from kexue_train.corpus.filters import drop_reasons
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.foundation.arrow_arrays import to_mask
from kexue_train.foundation.artifacts import Manifest
from kexue_train.shuffle.by_source import filters_of, with_source
from kexue_train.shuffle.keys import Words, hash_rows
from kexue_train.shuffle.rows import as_binary


def named_sources(settings: dict[str, Any]) -> list[NamedSource]:
    """Return the sources of the mixture that a finished shuffle read, with nothing to say of their inputs.

    Args:
        settings: Of the manifest of the text shards.
    """
    return [
        NamedSource.parse(
            {name: value for name, value in entry.items() if name != "files"} | {"inputs": ["?"]}, where="the manifest"
        )
        for entry in settings.get("sources", ())
    ]


def sources_of_files(manifest: Manifest) -> list[NamedSource | None]:
    """Return for each input of a finished shuffle the source of a mixture that it is of."""
    settings = manifest.settings
    numbers = [entry["files"] for entry in settings.get("sources", ())]
    owners = [named for named, number in zip(named_sources(settings), numbers, strict=True) for _ in range(number)]
    return [*owners] or [None] * len(manifest.inputs)


def find_again(patterns: Sequence[str], settings: dict[str, Any], named: NamedSource | None = None) -> list[Source]:
    """Return inputs of a finished shuffle as they are now, as those of the source ``named`` if there were sources.

    Raises:
        CorpusError: If one is gone.
    """
    own = named.model_dump(include={"format", "document"}, exclude_none=True) if named else {}
    settings = settings | own
    found = find_inputs(patterns, format=settings["format"], document=settings["document"])
    return [replace(source, named=named) for source in found]


def read_again(source: Source, settings: dict[str, Any]) -> Iterator[RecordBlock]:
    """Yield the documents that a shuffle accepts of ``source``: no rejected records, none that a filter drops.

    Args:
        source: One input; its source of a mixture is that of ``named_sources``.
        settings: Of the manifest of the text shards.
    """
    keys = settings["text_key"]
    options = ReadOptions(
        text_keys=(keys,) if isinstance(keys, str) else tuple(keys),
        keep=tuple(settings["keep"])[: -1 if source.named else None],  # the last one is the column of sources
        document=settings["document"],
    )
    filters = filters_of(source, FilterConfig.model_validate(settings["filters"]))
    for block in read_records(source, options):
        if not len(block.positions):
            continue
        block = with_source(block, source)
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
