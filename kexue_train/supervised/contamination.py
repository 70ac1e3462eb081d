"""How many of a task's development and test texts the corpus has: as they are, or nearly.

Texts are compared by their letters and digits alone, small and in compatible forms (NFKC). A *shingle* is ``SIZE`` of
them in a row. A text is found nearly if one document has ``NEAR`` of its different shingles, and as it is if a document
has it whole. Every shingle of every document is looked up, so nothing is estimated; a text is missed only if it is too
short to be told from chance, and those are counted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.supervised.needs import NEAR, SHORTEST, SIZE

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so no power of it is 0
_EXAMPLES = 3
_Hashes = npt.NDArray[np.uint64]


class Contamination(BaseModel):
    """What was found of one task."""

    model_config = ConfigDict(frozen=True)

    task: str
    texts: int
    """Different ones, development and test sets together."""
    too_short: int
    """Of these, not looked for."""
    exact: int
    """Found as they are."""
    near: int
    """Others of which a document has four fifths of the shingles."""
    examples: list[str]
    """The beginnings of some that were found."""

    @property
    def share(self) -> float:
        """Share of the texts looked for that were found."""
        return (self.exact + self.near) / max(1, self.texts - self.too_short)

    def in_words(self) -> str:
        """Return a line for a reader."""
        looked_for = self.texts - self.too_short
        return (
            f"{self.task}: of {looked_for:,} texts of the development and test sets the corpus has {self.exact:,} as "
            f"they are and {self.near:,} nearly ({self.share:.1%}); {self.too_short:,} more are too short to tell"
        )


def normalised(text: str) -> str:
    """Return the letters and digits of ``text``, small, in compatible forms."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).lower()))


def shingle_hashes(text: str) -> _Hashes:
    """Return a hash of every shingle of a normalised text, in order: (length - SIZE + 1,); none of a shorter one."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(points) - SIZE + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for offset in range(SIZE):  # Horner's rule, modulo 2^64
        hashes = hashes * _FACTOR + points[offset : offset + count] + np.uint64(1)
    return hashes ^ (hashes >> np.uint64(29))


def find_contamination(texts: Mapping[str, Iterable[str]], shards: Path) -> list[Contamination]:
    """Look for the texts of every task in the documents of ``shards``.

    Args:
        texts: Name of a task -> its development and test texts.
        shards: Folder of text shards.
    """
    return find_in_documents(texts, _documents(shards))


def find_in_documents(texts: Mapping[str, Iterable[str]], documents: Iterable[str]) -> list[Contamination]:
    """Look for the texts of every task in ``documents``; see the module."""
    tasks = {name: list(dict.fromkeys(filter(None, map(normalised, of_task)))) for name, of_task in texts.items()}
    wanted = list(dict.fromkeys(text for of_task in tasks.values() for text in of_task if len(text) >= SHORTEST))
    exact, near = _search(wanted, documents)
    found = []
    for name, of_task in tasks.items():
        whole = [text for text in of_task if text in exact]
        nearly = [text for text in of_task if text in near - exact]
        found.append(
            Contamination(
                task=name,
                texts=len(of_task),
                too_short=sum(len(text) < SHORTEST for text in of_task),
                exact=len(whole),
                near=len(nearly),
                examples=[text[:40] for text in [*whole, *nearly][:_EXAMPLES]],
            )
        )
    return found


def _search(wanted: Sequence[str], documents: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the texts of which a document has all, and those of which one has so many shingles."""
    of_texts = [np.unique(shingle_hashes(text)) for text in wanted]
    sizes = np.array([len(hashes) for hashes in of_texts])
    flat = np.concatenate([*of_texts, np.zeros(0, np.uint64)])
    order = np.argsort(flat, kind="stable")
    hashes, owners = flat[order], np.repeat(np.arange(len(wanted)), sizes)[order]
    known = np.unique(hashes)
    exact: set[str] = set()
    near: set[str] = set()
    for document in documents:
        text = normalised(document)
        of_document = shingle_hashes(text)
        hits = np.unique(of_document[_is_among(of_document, known)])
        if not len(hits):
            continue
        firsts, lasts = np.searchsorted(hashes, hits, "left"), np.searchsorted(hashes, hits, "right")
        counts = np.bincount(owners[_spans(firsts, lasts)], minlength=len(wanted))
        for number in np.flatnonzero(counts >= NEAR * sizes).tolist():
            near.add(wanted[number])
            if wanted[number] in text:
                exact.add(wanted[number])
    return exact, near


def _is_among(values: _Hashes, known: _Hashes) -> npt.NDArray[np.bool_]:
    """Return which of ``values`` are in ``known``, which rises and may be empty."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    is_known: npt.NDArray[np.bool_] = known[places] == values
    return is_known


def _spans(firsts: npt.NDArray[np.int64], lasts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    lengths = lasts - firsts
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum()))


def _documents(shards: Path) -> Iterator[str]:
    for path in shard_paths(shards):
        batch: pa.RecordBatch
        for batch in read_shard(path).to_batches(max_chunksize=1024):
            yield from batch.column("text").to_pylist()
