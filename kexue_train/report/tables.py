"""The tables of the page: pure functions from a run to rows of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kexue_train.foundation.artifacts import Manifest
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.metrics.fields import (
    EMPTY,
    GLOBAL_BATCH_SIZE,
    LINES,
    MEMORY_BYTES,
    MFU,
    MFU_DATASHEET,
    SECONDS,
    SEQ_LEN,
    STEP,
    TIME,
    TOKENS,
    TOKENS_PER_SECOND,
    Kind,
    Record,
)
from kexue_train.report.labelled_tasks import HEADER, NOTES, task_rows_of_table
from kexue_train.report.run_data import RunData
from kexue_train.report.training import phase_speeds

_MAX_INPUTS = 20
_YEAR_9999 = 253_000_000_000  # in seconds since 1970
# Drawn as bars, told among the checks, or in tables of their own.
_NOT_LISTED = {
    "special_token_ids",
    "documents_by_source",
    "word_lengths",
    "rank_correlation",
    "source_mixing",
    "near_duplicates",
    "sources",
    "source_documents",
    "scripts",
    "languages",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, the others are right-aligned if ``numeric``."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    numeric: bool = True
    notes: list[str] = field(default_factory=list)
    """What has to be known to read it, below it."""
    wide: bool = False
    """Over the whole width of the page."""


def artifact_tables(run: RunData) -> list[Table]:
    """Return what each data stage made, from its manifest."""
    return [
        Table(stage.title, ["", ""], list(_describe_artifact(run.manifests[stage.folder])))
        for stage in run.known_stages
        if stage.title and stage.folder in run.manifests
    ]


def labelled_task_table(run: RunData) -> Table | None:
    """Return the tasks of the supervised stage with their rows and held-out scores."""
    rows = task_rows_of_table(run.task_rows, run.task_lines)
    return Table("Labelled tasks", HEADER, rows, notes=NOTES, wide=True) if rows else None


def input_table(run: RunData) -> Table | None:
    """Return the files that the shuffle read with their rejected and filtered records; of many, the largest ones."""
    inputs = run.manifests["shards"].inputs if "shards" in run.manifests else []
    if not inputs:
        return None
    shown = sorted(inputs, key=lambda entry: entry.bytes, reverse=True)[:_MAX_INPUTS]
    rows = [
        [
            entry.uri,
            format_size(entry.bytes),
            f"{entry.rows:,}",
            f"{sum(entry.rejected.values()):,}",
            f"{sum(entry.dropped.values()):,}",
        ]
        for entry in shown
    ]
    notes = [f"The largest {len(shown)} of {len(inputs):,} files."] if len(inputs) > len(shown) else []
    return Table("Corpus files", ["", "Size", "Documents", "Refused", "Filtered out"], rows, notes=notes, wide=True)


def phase_table(run: RunData) -> Table | None:
    """Return how fast each phase of training was; None before the first line of metrics."""
    speeds = phase_speeds(run)
    if not speeds:
        return None
    rows = [
        [
            f"Phase {speed.number}: steps {speed.first_step + 1:,} to {speed.last_step:,}",
            SEQ_LEN.text(speed.facts),
            GLOBAL_BATCH_SIZE.text(speed.facts),
            *(
                EMPTY if value is None else metric.write(value)
                for metric, value in (
                    (TOKENS, speed.tokens),
                    (SECONDS, speed.seconds),
                    (TOKENS_PER_SECOND, speed.tokens_per_second),
                    (MFU, speed.mfu),
                    (MFU_DATASHEET, speed.mfu_datasheet),
                    (MEMORY_BYTES, speed.memory_bytes),
                )
            ),
        ]
        for speed in speeds
    ]
    header = ["", "Row length", "Rows a step", "Tokens", "Time", "Tokens/s", "MFU", "MFU, data sheet", "Peak memory"]
    note = (
        "Tokens without padding; time of the steps alone. MFU: the share of what the devices were measured to do in "
        "large matrix products, and of what their maker promises."
    )
    notes = [note]
    if any(speed.mfu and speed.mfu > 1 for speed in speeds):
        notes.append("Above 100% the share says nothing: the devices had other work too when they were measured.")
    return Table("Speed of each phase", header, rows, notes=notes, wide=True)


def stage_table(run: RunData) -> Table | None:
    """Return time, rows and bytes of every finished stage."""
    if not run.stages:
        return None
    rows = [
        [
            str(record["stage"]),
            datetime.fromtimestamp(record["started"], UTC).strftime("%H:%M:%S") if "started" in record else EMPTY,
            format_seconds(float(record.get("seconds") or 0.0)),
            f"{record['rows']:,}" if record.get("rows") else EMPTY,
            format_size(record["bytes"]) if record.get("bytes") else EMPTY,
        ]
        for record in run.stages
    ]
    return Table("Stages", ["Stage", "Started (UTC)", "Time", "Rows", "Bytes"], rows, wide=True)


def missing_stages(run: RunData) -> list[str]:
    """Return the stages that have not finished, in order; the corpus only if the configuration makes one."""
    done = {str(record["stage"]) for record in run.stages}
    made_here = (run.config.get("corpus") or {}).get("source") == "installed_docs"
    return [
        stage.name
        for stage in run.known_stages
        if stage.name not in done and stage.folder not in run.manifests and (stage.name != "corpus" or made_here)
    ]


def event_table(run: RunData) -> Table | None:
    """Return starts, phases, resumes, rollbacks, stops and ends of training."""
    records = run.of_kind(Kind.START, Kind.PHASE, Kind.RESUME, Kind.ROLLBACK, Kind.STOP, Kind.END)
    if not records:
        return None
    rows = [[_event_time(record), record["kind"], STEP.text(record), _event_details(record)] for record in records]
    return Table(
        "Starts, phases, resumes and ends of training", ["Time (UTC)", "Event", "Step", "Details"], rows, numeric=False
    )


def version_table(run: RunData) -> Table:
    """Return the versions of the software that wrote the report."""
    return Table("Software", ["", "Version"], [[name, version] for name, version in run.versions.items()])


def _describe_artifact(manifest: Manifest) -> Iterator[list[str]]:
    if manifest.rows:
        yield ["rows", f"{manifest.rows:,}"]
    number = len(manifest.files)
    yield ["size", f"{format_size(manifest.bytes)} in {number} file{'s' if number > 1 else ''}"]
    if rejected := manifest.rejected.total():
        yield ["records refused", f"{rejected:,}"]
    yield from _flat_rows(manifest.statistics)


def _flat_rows(values: Record, prefix: str = "") -> Iterator[list[str]]:
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if key in _NOT_LISTED:
            continue
        if isinstance(value, dict):
            yield from _flat_rows(value, f"{name}: ")
        elif not isinstance(value, list):
            yield [name, _format_value(key, value)]


def _format_value(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: EMPTY}[value]
    if isinstance(value, float):
        is_share = key == "fill" or key.endswith(("_rate", "_fraction", "_share"))
        return f"{value:.2%}" if is_share else f"{value:,.4g}"
    if isinstance(value, int):
        return format_size(value) if key == "bytes" or key.endswith("_bytes") else f"{value:,}"
    return str(value)


def _event_time(record: Record) -> str:
    seconds = TIME.of(record)
    if seconds is None or not 0 <= seconds < _YEAR_9999:
        return EMPTY
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d\u00a0%H:%M:%S")


def _event_details(record: Record) -> str:
    fields = [field for field in LINES[record["kind"]] if record.get(field.key) is not None]
    return ", ".join(f"{field.label} {field.text(record)}" for field in fields) or EMPTY
