"""Sentences without labels, from files of any format that the corpus readers know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.foundation.errors import EvaluationError
from kexue_train.samples.sentences import split_sentences

_LEAST = 2  # a batch of one has nothing to be told from


@dataclass(frozen=True)
class RawSentences:
    """Different sentences, in the order of the files, and what was left out."""

    texts: list[str]
    found: int
    """Sentences in the files, before repetitions and the rest of ``max_number`` were left out."""
    repeated: int
    """Those that were there before: two of them in a batch would have to be told apart."""
    rejected: dict[str, int]
    """Reason -> records that could not be read."""


def read_sentences(path: Path, max_number: int | None = None) -> RawSentences:
    """Read text files, JSON Lines (key ``text``) or tables and cut their documents into sentences.

    Args:
        path: A file, or a folder of files.
        max_number: Keep so many sentences at most, chosen by a hash: so the choice depends on no order of files.

    Raises:
        CorpusError: If the path names nothing, or a file is damaged or of no known format.
        EvaluationError: If there are fewer than two different sentences.
    """
    found, different, rejected = 0, dict[str, None](), Counter[str]()
    for source in find_inputs([str(path)]):
        for block in read_records(source):
            rejected.update(entry.reason for entry in block.rejected)
            for text in block.texts.to_pylist():
                sentences = [sentence.strip() for sentence in split_sentences(text)]
                kept = [sentence for sentence in sentences if sentence]
                found += len(kept)
                different.update(dict.fromkeys(kept))
    if len(different) < _LEAST:
        reasons = f" (rejected records: {json.dumps(rejected)})" if rejected else ""
        raise EvaluationError(
            f"{path}: holds {len(different)} different sentences{reasons}; expected at least {_LEAST}, of text files "
            "with a text per line, or JSON Lines with a key 'text'"
        )
    return RawSentences(_choose(list(different), max_number), found, found - len(different), dict(rejected))


def _choose(texts: Sequence[str], most: int | None) -> list[str]:
    if most is None or len(texts) <= most:
        return list(texts)
    keys = [xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass")) for text in texts]
    chosen = sorted(range(len(texts)), key=lambda i: (keys[i], i))[:most]
    return [texts[i] for i in sorted(chosen)]
