"""What the report says of the sources of a mixture: what became of their documents, their tokens, and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kexue_train.foundation.runtime import format_size
from kexue_train.metrics.fields import EMPTY, SOURCE, SOURCE_ACCURACY, SOURCE_LOSS, STEP, Kind, Record
from kexue_train.report.charts import COLOURS, LineChart, Series, line_chart
from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_HEADER = [
    "Source",
    "weight",
    "documents read",
    "left out",
    "copies",
    "not drawn",
    "documents written",
    "text",
    "share",
    "tokens",
    "held-out tokens",
    "first loss",
    "last loss",
    "last accuracy",
]
_NOTE = (
    "A weight is how often each document is taken. Left out: rejected, or dropped by a filter or for its kind. "
    "Copies: of documents that stay elsewhere. Losses in nats and accuracies are of masked tokens of each source in "
    "the held-out rows, when training first scored them and last."
)


def source_tables(run: RunData) -> list[Table]:
    """Return the table of sources; none if the corpus is no mixture."""
    shards = run.manifests["shards"].statistics.get("sources", {}) if "shards" in run.manifests else {}
    samples = run.manifests["samples"].statistics.get("sources", {}) if "samples" in run.manifests else {}
    rows = [_row(name, entry, samples.get(name), _lines(run, name)) for name, entry in shards.items()]
    return [Table("Sources of the mixture", _HEADER, rows, notes=[_NOTE], wide=True)] if rows else []


def source_chart(run: RunData) -> LineChart | None:
    """Draw the held-out loss of each source, of many of those with most text; None without one."""
    shards = run.manifests["shards"].statistics.get("sources", {}) if "shards" in run.manifests else {}
    names = dict.fromkeys([*shards, *(str(SOURCE.of(line)) for line in run.of_kind(Kind.SOURCE))])
    largest = sorted(names, key=lambda name: -shards.get(name, {}).get("share", 0.0))[:COLOURS]
    series = [
        Series(name, [(float(STEP.amount(line)), SOURCE_LOSS.amount(line)) for line in lines], colour)
        for colour, name in enumerate(largest, 1)
        if (lines := [line for line in _lines(run, name) if SOURCE_LOSS.of(line) is not None])
    ]
    return (
        line_chart("source-loss", "Held-out loss on masked tokens by source (nats)", series, wide=True)
        if series
        else None
    )


def _lines(run: RunData, name: str) -> Sequence[Record]:
    """Return the lines of a source by rising step; where steps were repeated, the last writing counts."""
    by_step = {line["step"]: line for line in run.of_kind(Kind.SOURCE) if SOURCE.of(line) == name}
    return [by_step[step] for step in sorted(by_step)]


def _row(name: str, entry: dict[str, Any], tokens: dict[str, int] | None, lines: Sequence[Record]) -> list[str]:
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    left_out = sum(entry["rejected"].values()) + sum(entry["dropped"].values())
    return [
        name,
        f"{entry['weight']:g}",
        f"{entry['input_documents']:,}",
        f"{left_out:,}",
        f"{entry['duplicates'] + entry['near_duplicates']:,}",
        f"{entry['sampled_out']:,}",
        f"{entry['documents']:,}",
        format_size(entry["text_bytes"]),
        f"{entry['share']:.1%}",
        f"{tokens['document_tokens']:,}" if tokens else EMPTY,
        f"{tokens['heldout_tokens']:,}" if tokens else EMPTY,
        SOURCE_LOSS.text(first),
        SOURCE_LOSS.text(last),
        SOURCE_ACCURACY.text(last),
    ]
