"""Which documents of a text shard hold given runs of tokens: from a sample row back to its documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from kexue_train.samples.encode import Documents, Encoder
from kexue_train.samples.shard_texts import iter_text_batches, text_column

Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class Place:
    """A document that holds a run of tokens."""

    shard: Path
    document: int
    """Its number in the shard, from 0."""
    text: str


def find_tokens(shard: Path, tokenizer: Tokenizer, runs: Sequence[Tokens]) -> list[list[Place]]:
    """Return for each run of tokens the documents of ``shard`` that hold it, whole and in this order.

    A run that a document holds twice is one place.

    Args:
        shard: A text shard.
        tokenizer: That of the samples.
        runs: Token ids without special ones; empty ones are found nowhere.

    Raises:
        ArtifactError: If the shard is damaged.
    """
    encoder = Encoder(tokenizer, whole_word=False)
    wanted = [np.asarray(run, encoder.dtype) for run in runs]
    places: list[list[Place]] = [[] for _ in runs]
    first = 0
    for texts in iter_text_batches(text_column(shard)):
        documents = encoder.encode(texts)
        for found, run in zip(places, wanted, strict=True):
            found += [Place(shard, first + number, texts[number]) for number in _documents_with(run, documents)]
        first += len(texts)
    return places


def _documents_with(run: Tokens, documents: Documents) -> list[int]:
    """Return the numbers of the documents that hold ``run``, rising."""
    numbers = (
        int(np.searchsorted(documents.offsets, start, "right")) - 1 for start in _starts(run, documents.token_ids)
    )
    ends = documents.offsets[1:]
    starts = zip(_starts(run, documents.token_ids), numbers, strict=True)
    return sorted({number for start, number in starts if start + len(run) <= ends[number]})


def _starts(run: Tokens, tokens: Tokens) -> Iterator[int]:
    """Yield where ``run`` begins in ``tokens``; searched as bytes, which is a matter of C."""
    needle, hay, size = run.tobytes(), tokens.tobytes(), tokens.itemsize
    start = hay.find(needle) if needle else -1
    while start >= 0:
        if start % size == 0:
            yield start // size
        start = hay.find(needle, start + 1)
