"""Whether files hold the very documents that text shards were made from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from kexue_train.corpus.config import NamedSource
from kexue_train.corpus.inputs import Source
from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import InputFile, Manifest
from kexue_train.foundation.errors import ArtifactError, CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.shuffle.keys import sum_words
from kexue_train.shuffle.read_again import find_again, hash_documents, named_sources, read_again


class Compared(NamedTuple):
    """The documents of one file of the manifest beside those that were given."""

    name: str
    documents: int
    found_in: str | None
    """The given file with these documents; None: none has them."""


def compare_documents(shards: Manifest, corpus: Sequence[str], progress: Progress = SILENT) -> list[Compared]:
    """Read ``corpus`` as the shuffle did, and look for the documents of each input of ``shards`` in it.

    Files are matched by their documents, whatever they are called, however they are compressed or cut.

    Raises:
        ArtifactError: If the manifest records no checksums of documents, or a file of it has other documents now.
        CorpusError: If the corpus cannot be read.
    """
    if any(entry.rows_checksum is None for entry in shards.inputs):
        raise ArtifactError("the text shards record no checksums of their documents, so these cannot be compared")
    settings = shards.settings
    found: dict[tuple[int, str], str] = {}
    # Of which source of a mixture a given file is nobody says, so it is read as each of them would have it.
    as_sources: list[NamedSource | None] = [*named_sources(settings)] or [None]
    for named in as_sources:
        sources = find_again(corpus, settings, named)
        for number, source in enumerate(sources, 1):
            with nullcontext() if named is None else suppress(CorpusError):
                found[count_documents(source, settings)] = source.path
            progress.update(number, len(sources), "files")
    return [_compare(entry, found) for entry in shards.inputs]


def count_documents(source: Source, settings: dict[str, Any]) -> tuple[int, str]:
    """Return how many documents the shuffle accepts of ``source``, and the sum of their hashes."""
    rows = checksum = 0
    for block in read_again(source, settings):
        rows += len(block.texts)
        checksum += sum_words(hash_documents(block.texts, block.extras))
    return rows, format_checksum(checksum)


def _compare(entry: InputFile, found: dict[tuple[int, str], str]) -> Compared:
    return Compared(entry.uri, entry.rows, found.get((entry.rows, str(entry.rows_checksum))))
