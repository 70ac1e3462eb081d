"""Says early what would leave the prediction of next sentences without data, which no number of a training shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kexue_train.foundation.progress import Progress
from kexue_train.samples.sentences import sentence_cuts
from kexue_train.samples.shard_texts import iter_text_blocks

_LOOKED_AT_BYTES = 1_000_000
_FEW_PAIRS = 0.01
_FEW_NEGATIVES = 0.35  # of many pairs half are, give or take a few per cent
_MANY = 100
_REMEDY = (
    "if the corpus has one sentence on each line and a blank line after each document, as BERT's own format, shuffle "
    "it with --document block (shuffle.document: block); else turn pairs off with --no-nsp (samples.nsp: false)"
)


def describe_missing_pairs(documents: Iterable[str]) -> str | None:
    """Return a warning if none of ``documents``, the first of a corpus, has a second sentence; else None."""
    num_documents = 0
    for text in documents:
        if sentence_cuts(text):
            return None
        num_documents += 1
    if not num_documents:
        return None
    return (
        f"warning: samples.nsp is on, but none of the first {num_documents:,} documents has two sentences, so there "
        f"will be no pairs: {_REMEDY}"
    )


def note_documents_without_pairs(shards: Path, progress: Progress) -> None:
    """Warn if none of the first documents of ``shards``, a uniform sample, has a second sentence."""
    if warning := describe_missing_pairs(iter_text_blocks(shards, _LOOKED_AT_BYTES, block_bytes=1)):
        progress.note(warning)


def note_missing_pairs(numbers: Mapping[str, int], progress: Progress) -> None:
    """Warn if there are no pairs or hardly any among the sequences that were made, or few negative ones among many.

    Args:
        numbers: ``RowCounts.numbers``.
        progress: Receives the warning.
    """
    sequences, pairs, negatives = (numbers[name] for name in ("sequences", "pairs", "negative_pairs"))
    if pairs < _FEW_PAIRS * sequences:
        progress.note(
            f"warning: samples.nsp is on, but {pairs or 'none'} of the {sequences:,} sequences "
            f"{'are pairs' if pairs else 'is a pair'}: {_REMEDY}"
        )
    elif pairs >= _MANY and negatives < _FEW_NEGATIVES * pairs:
        progress.note(
            f"warning: {negatives:,} of the {pairs:,} pairs have a random B, not half of them: many documents are "
            "copies of each other, and what they offer follows A; shuffle with --dedup exact (shuffle.dedup: exact)"
        )
