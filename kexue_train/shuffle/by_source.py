"""What becomes of each source of a mixture: its column in the shards, and its counts through both passes.

The documents of a scatter task are of one source, so where a row comes from says which source it is of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic_core import to_json

from kexue_train.corpus.config import FilterConfig, NamedSource
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.mixture import Documents, by_precedence
from kexue_train.corpus.records import RecordBlock
from kexue_train.foundation.arrow_arrays import lengths_of, to_binary
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.shuffle.config import SOURCE_COLUMN, ShuffleConfig
from kexue_train.shuffle.plan import ShufflePlan, estimate_text_bytes
from kexue_train.shuffle.rows import Rows
from kexue_train.shuffle.scatter_result import FileCounts, ScatterResult

_SHOWN_SOURCES = 6


def sources_of(inputs: Sequence[Source]) -> list[NamedSource]:
    """Return the sources of a mixture in the order of their inputs; none where there is no mixture."""
    return list({source.named.name: source.named for source in inputs if source.named}.values())


def order_sources(config: ShuffleConfig, documents: Documents) -> list[NamedSource]:
    """Return the sources of a mixture in the order in which they are read; none where there is no mixture."""
    sources = [entry for entry in documents if isinstance(entry, NamedSource)]
    return sources if config.dedup == "none" else by_precedence(sources)


def kept_columns(config: ShuffleConfig, inputs: Sequence[Source]) -> tuple[str, ...]:
    """Return the columns of the shards beside the text.

    Raises:
        ConfigError: If ``keep_all`` has found one with the name of the column of sources.
    """
    if not sources_of(inputs):
        return config.keep
    if SOURCE_COLUMN in config.keep:
        raise ConfigError(
            f"the inputs have a key '{SOURCE_COLUMN}', and with corpus.sources that column holds the name of the "
            "source; name the keys to keep in shuffle.keep in place of keep_all"
        )
    return (*config.keep, SOURCE_COLUMN)


def filters_of(source: Source, filters: FilterConfig) -> FilterConfig:
    """Return the filters of an input."""
    return source.named.filters if source.named and source.named.filters is not None else filters


def with_source(block: RecordBlock, source: Source) -> RecordBlock:
    """Return the block with the name of its source as the last of its kept values; as it is without one."""
    if source.named is None:
        return block
    name = to_json(source.named.name)
    if block.extras is None:
        values = [b"[%b]" % name] * len(block.positions)
    else:
        values = [value[:-1] + b",%b]" % name for value in block.extras.to_pylist()]
    return replace(block, extras=to_binary(values))


def describe_shares(statistics: Mapping[str, Any]) -> str:
    """Return which share of the text each source has, largest first, from the statistics of shards; "" without any."""
    return _name_shares({name: entry["share"] for name, entry in statistics.get("sources", {}).items()})


def foresee_shares(inputs: Sequence[Source]) -> str:
    """Return which share of the text each source of a mixture will have about, from the sizes of the files."""
    sizes = {
        named.name: estimate_text_bytes([source for source in inputs if source.named is named])
        for named in sources_of(inputs)
    }
    total = sum(sizes.values())
    return f"; about {_name_shares({name: size / total for name, size in sizes.items()})}" if total else ""


def _name_shares(shares: Mapping[str, float]) -> str:
    names = sorted(shares, key=lambda name: -shares[name])
    more = f" and {len(names) - _SHOWN_SOURCES:,} more" if len(names) > _SHOWN_SOURCES else ""
    return ", ".join(f"{name} {shares[name]:.1%}" for name in names[:_SHOWN_SOURCES]) + more


@dataclass(slots=True)
class SourceCounts:
    """Rows of one source in one shard."""

    rows: int = 0
    text_bytes: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    sampled_out: int = 0


class SourceTally:
    """Counts the rows of a shard by source.

    Args:
        task_sources: For each scatter task the number of its source; empty where there is no mixture.
    """

    def __init__(self, task_sources: Sequence[int]) -> None:
        self._task_sources = np.array(task_sources, np.int64)
        self.counts = [SourceCounts() for _ in range(max(task_sources, default=-1) + 1)]

    def add(self, what: str, rows: Rows) -> None:
        """Add ``rows``, which have origins, to the count ``what``; if these are the written ones, their texts too."""
        if not self.counts or not len(rows) or rows.origins is None:
            return
        numbers = self._task_sources[rows.origins]
        found = np.bincount(numbers, minlength=len(self.counts)).tolist()
        sizes = np.zeros(len(self.counts), np.int64)
        if what == "rows":
            np.add.at(sizes, numbers, lengths_of(rows.texts))
        for counts, number, size in zip(self.counts, found, sizes.tolist(), strict=True):
            setattr(counts, what, getattr(counts, what) + number)
            counts.text_bytes += size


@dataclass(frozen=True)
class Mixture:
    """The sources of a shuffle."""

    sources: Sequence[NamedSource] = ()
    """In the order of their inputs; none: the corpus is no mixture."""
    source_of_file: Sequence[int] = ()
    task_sources: tuple[int, ...] = ()
    """For each scatter task the number of its source."""

    @classmethod
    def of(cls, inputs: Sequence[Source], plan: ShufflePlan) -> Mixture:
        """Return the mixture of ``inputs``, read as in ``plan``."""
        sources = sources_of(inputs)
        numbers = {named.name: number for number, named in enumerate(sources)}
        files = [numbers[source.named.name] for source in inputs if source.named]
        tasks = tuple(files[task[0].file_index] for task in plan.tasks) if files else ()
        return cls(sources, files, tasks)

    def require_documents(self, scattered: Sequence[ScatterResult]) -> None:
        """Refuse a source that gives no document, since the mixture would not be the one that was asked for.

        Raises:
            CorpusError: Names the source, and what became of its records.
        """
        for number, named in enumerate(self.sources):
            read = _Read.of([r for r, of in zip(scattered, self.task_sources, strict=True) if of == number])
            if not read.offered:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in (read.rejected + read.dropped).items())
                raise CorpusError(
                    f"source '{named.name}' gives no document ({read.blank} blank, {read.rejected.total()} rejected, "
                    f"{read.dropped.total()} dropped by filters{f': {reasons}' if reasons else ''}); correct its "
                    "inputs, text_key or filters, or remove the source"
                )

    def describe(
        self, scattered: Sequence[ScatterResult], gathered: Sequence[Sequence[SourceCounts]]
    ) -> dict[str, dict[str, Any]]:
        """Return what became of every source by its name, and prove that nothing of it is missing.

        Raises:
            ArtifactError: If rows of a source are missing.
        """
        found: dict[str, dict[str, Any]] = {}
        for number, named in enumerate(self.sources):
            read = _Read.of([r for r, of in zip(scattered, self.task_sources, strict=True) if of == number])
            own = [counts[number] for counts in gathered if number < len(counts)]
            written = {name: sum(getattr(counts, name) for counts in own) for name in SourceCounts.__slots__}
            duplicates = written["duplicates"] + read.duplicates
            sampled_out = written["sampled_out"] + read.sampled_out
            if read.offered != written["rows"] + duplicates + written["near_duplicates"] + sampled_out:
                raise ArtifactError(
                    f"the shuffle read {read.offered} documents of source '{named.name}', wrote {written['rows']} and "
                    "skipped others, but not as many as are missing; nothing is published: check disk and memory of "
                    "the machine, then run it again"
                )
            found[named.name] = {
                "weight": named.weight,
                "files": self.source_of_file.count(number),
                "input_documents": read.documents,
                "blank": read.blank,
                "rejected": dict(sorted(read.rejected.items())),
                "dropped": dict(sorted(read.dropped.items())),
                "offered": read.offered,
                "duplicates": duplicates,
                "near_duplicates": written["near_duplicates"],
                "sampled_out": sampled_out,
                "documents": written["rows"],
                "text_bytes": written["text_bytes"],
            }
        total = sum(entry["text_bytes"] for entry in found.values())
        return {name: entry | {"share": round(entry["text_bytes"] / total, 6)} for name, entry in found.items()}


@dataclass(slots=True)
class _Read:
    """What the scatter tasks of one source counted."""

    documents: int = 0
    blank: int = 0
    offered: int = 0
    duplicates: int = 0
    sampled_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, results: Sequence[ScatterResult]) -> _Read:
        read = cls()
        for result in results:
            read.offered += result.offered
            read.duplicates += result.duplicates
            read.sampled_out += result.sampled_out
            for counts in result.files.values():
                read._add(counts)
        return read

    def _add(self, counts: FileCounts) -> None:
        self.documents += counts.rows
        self.blank += counts.blank
        self.rejected.update(counts.rejected)
        self.dropped.update(counts.dropped)
