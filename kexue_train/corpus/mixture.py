"""The inputs of a mixture: those of every source, each with the source that it belongs to.

A weight is how often each document is taken, not a share of the whole: that is exact, and needs no size of anything to
be known. The shares that come out are measured and told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kexue_train.corpus.config import CorpusConfig, NamedSource
from kexue_train.corpus.inputs import Source, find_inputs, inspect_input
from kexue_train.corpus.patterns import Note
from kexue_train.corpus.records import Document
from kexue_train.corpus.remote import is_uri
from kexue_train.foundation.config_file import read_yaml, resolve_relative_paths
from kexue_train.foundation.credentials import without_credentials
from kexue_train.foundation.errors import ConfigError, CorpusError

logger = logging.getLogger(__name__)

Documents = Sequence[str] | Sequence[NamedSource]
"""What a corpus is made of: inputs as a user writes them, or sources of a mixture."""


def patterns_of(documents: Documents) -> list[str]:
    """Return what a user wrote for the inputs, those of all sources together."""
    return [
        pattern for entry in documents for pattern in (entry.inputs if isinstance(entry, NamedSource) else (entry,))
    ]


def read_sources(file: Path) -> tuple[NamedSource, ...]:
    """Return the sources that a YAML file lists under ``sources``; relative inputs start at its folder.

    Raises:
        ConfigError: If it cannot be read, or an entry is wrong.
    """
    values, lines = read_yaml(file)
    values = resolve_relative_paths(values, lines, file, ("sources.inputs",))
    sources = CorpusConfig.parse(values, where=str(file), lines=lines).sources
    if not sources or values.keys() != {"sources"}:
        raise ConfigError(
            f"{file}: must hold one list, such as sources: [{{name: wiki, inputs: [wiki/*.jsonl], weight: 2}}], as "
            "under corpus in a run's configuration"
        )
    return sources


def by_precedence(sources: Sequence[NamedSource]) -> list[NamedSource]:
    """Return the sources of a mixture in the order in which they keep documents that several of them hold.

    That is by falling weight, and as listed among equal ones. So a document stays where it is taken most often, and
    with all of its copies.
    """
    return sorted(sources, key=lambda named: -named.weight)


def find_mixture(
    sources: Sequence[NamedSource], *, format: str, document: Document, note: Note = logger.warning
) -> list[Source]:
    """Return the inputs of all sources, in their order, and of each source as ``find_inputs`` sorts them.

    Args:
        sources: The sources.
        format: What files are, if neither their names nor their source tell.
        document: What a document is in text files, if the source does not tell.
        note: Receives lines as of ``find_inputs``.

    Raises:
        CorpusError: As in ``find_inputs``, or if two sources name one file.
    """
    found: list[Source] = []
    owners: dict[object, str] = {}
    for named in sources:
        try:
            inputs = find_inputs(
                named.inputs, format=named.format or format, document=named.document or document, note=note
            )
        except CorpusError as error:
            raise CorpusError(f"source '{named.name}': {error}") from None
        settings = named.model_copy(update={"inputs": ()})  # all inputs would travel with each of them
        for source in inputs:
            is_elsewhere = is_uri(source.path)
            identity = without_credentials(source.path) if is_elsewhere else inspect_input(source.path).identity
            owner = owners.setdefault(identity, named.name)
            if owner != named.name:
                raise CorpusError(
                    f"{source.path}: is an input of the sources '{owner}' and '{named.name}', so its documents would "
                    "count for both; take it out of one of them, or give that one narrower globs"
                )
            found.append(replace(source, weight=named.weight, named=settings))
    return found
