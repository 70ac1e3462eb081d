"""The tables of the page: pure functions from a run to rows of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kexue_train.artifacts import Manifest
from kexue_train.report.run_data import STAGES, Record, RunData
from kexue_train.report.summary import confidence
from kexue_train.runtime import format_seconds, format_size

_EMPTY = "–"
_MAX_VALIDATIONS = 12
_TITLES = {
    "corpus": "Corpus",
    "shards": "Shuffled text",
    "tokenizer": "Tokenizer",
    "samples": "Samples",
    "hf": "Exported model",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, the others are right-aligned if ``numeric``."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    numeric: bool = True


def evaluation_table(run: RunData) -> Table | None:
    """The held-out scores beside what guessing reaches."""
    mlm = run.mlm
    if not mlm:
        return None
    baselines, hidden = mlm["baselines"], mlm.get("hidden_only") or {}
    frequent = baselines.get("most_frequent_token_text", f"token {baselines['most_frequent_token']}")
    rows = [
        ["The model, hidden tokens only", _nats(hidden.get("mlm_loss")), _share(hidden, "mlm_accuracy", "predictions")],
        ["Best without context, same tokens", _nats(hidden.get("unigram_entropy")), _EMPTY],
        ["The model, all predicted tokens", _nats(mlm["mlm_loss"]), _share(mlm, "mlm_accuracy", "predictions")],
        ["Entropy of the targets", _nats(baselines["unigram_entropy"]), _EMPTY],
        ["Frequencies of the training text", _nats(baselines["unigram_cross_entropy"]), _EMPTY],
        [f"Always “{frequent}”", _EMPTY, f"{baselines['most_frequent_token_accuracy']:.1%}"],
        ["Uniform guessing", _nats(baselines["uniform"]), f"{1 / mlm['vocab_size']:.2%}"],
    ]
    caption = f"Masked tokens: {mlm['predictions']:,} predictions in {mlm['rows']:,} held-out rows"
    return Table(caption, ["", "Loss (nats)", "Accuracy"], rows)


def next_sentence_table(run: RunData) -> Table | None:
    """Next-sentence scores beside the majority guess; None without pairs."""
    mlm = run.mlm
    if not mlm or mlm.get("nsp_accuracy") is None:
        return None
    rows = [
        ["The model", _nats(mlm["nsp_loss"]), _share(mlm, "nsp_accuracy", "pairs")],
        ["Guessing the more frequent answer", _nats(math.log(2)), f"{mlm['baselines']['nsp_majority']:.1%}"],
    ]
    return Table(f"Next sentence: {mlm['pairs']:,} held-out pairs", ["", "Loss (nats)", "Accuracy"], rows)


def validation_table(run: RunData) -> Table | None:
    """The validations, thinned to a dozen with the last among them."""
    records = run.curve("validation")
    if not records:
        return None
    stride = -(-len(records) // _MAX_VALIDATIONS)
    kept = records[(len(records) - 1) % stride :: stride]
    rows = [
        [
            f"{record['step']:,}",
            _nats(record.get("mlm_loss")),
            _percent(record.get("mlm_accuracy")),
            _nats(record.get("nsp_loss")),
            _percent(record.get("nsp_accuracy")),
        ]
        for record in kept
    ]
    return Table("Validation during training", ["Step", "MLM loss", "MLM accuracy", "NSP loss", "NSP accuracy"], rows)


def artifact_tables(run: RunData) -> list[Table]:
    """What each data stage made, from its manifest."""
    return [
        Table(title, ["", ""], list(_describe_artifact(run.manifests[name])))
        for name, title in _TITLES.items()
        if name in run.manifests
    ]


def stage_table(run: RunData) -> Table | None:
    """Time, rows and bytes of every finished stage."""
    if not run.stages:
        return None
    rows = [
        [
            str(record["stage"]),
            datetime.fromtimestamp(record["started"], UTC).strftime("%H:%M:%S") if "started" in record else _EMPTY,
            format_seconds(float(record.get("seconds") or 0.0)),
            f"{record['rows']:,}" if record.get("rows") else _EMPTY,
            format_size(record["bytes"]) if record.get("bytes") else _EMPTY,
        ]
        for record in run.stages
    ]
    return Table("Stages", ["Stage", "Started (UTC)", "Time", "Rows", "Bytes"], rows)


def missing_stages(run: RunData) -> list[str]:
    """Names of the stages that have not finished, in order; the corpus only if the configuration makes one."""
    done = {str(record["stage"]) for record in run.stages}
    made_here = (run.config.get("corpus") or {}).get("source") == "installed_docs"
    return [
        stage
        for folder, stage in STAGES.items()
        if stage not in done and folder not in run.manifests and (stage != "corpus" or made_here)
    ]


def event_table(run: RunData) -> Table | None:
    """Starts, resumes, stops and ends of training."""
    records = run.of_kind("start", "resume", "stop", "end")
    if not records:
        return None
    rows = [[_event_time(r), str(r["kind"]), f"{r.get('step', 0):,}", _event_details(r)] for r in records]
    return Table(
        "Starts, resumes and ends of training", ["Time (UTC)", "Event", "Step", "Details"], rows, numeric=False
    )


def version_table(run: RunData) -> Table:
    """Versions of the software that wrote the report."""
    return Table("Software", ["", "Version"], [[name, version] for name, version in run.versions.items()])


def _describe_artifact(manifest: Manifest) -> Iterator[list[str]]:
    if manifest.rows:
        yield ["rows", f"{manifest.rows:,}"]
    number = len(manifest.files)
    yield ["size", f"{format_size(manifest.bytes)} in {number} file{'s' if number > 1 else ''}"]
    if rejected := sum(sum(entry.rejected.values()) for entry in manifest.inputs):
        yield ["records refused", f"{rejected:,}"]
    yield from _flat_rows(manifest.statistics)


def _flat_rows(values: Record, prefix: str = "") -> Iterator[list[str]]:
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if key == "special_token_ids":
            continue
        if isinstance(value, dict):
            yield from _flat_rows(value, f"{name}: ")
        elif not isinstance(value, list):
            yield [name, _format_value(key, value)]


def _format_value(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: _EMPTY}[value]
    if isinstance(value, float):
        is_share = key == "fill" or key.endswith(("_rate", "_fraction", "_share"))
        return f"{value:.2%}" if is_share else f"{value:,.4g}"
    if isinstance(value, int):
        return format_size(value) if key == "bytes" or key.endswith("_bytes") else f"{value:,}"
    return str(value)


def _event_time(record: Record) -> str:
    seconds = record.get("time")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d\u00a0%H:%M:%S") if seconds else _EMPTY


def _event_details(record: Record) -> str:
    told = [
        f"{k.replace('_', ' ')} {_format_value(k, v)}" for k, v in record.items() if k not in ("kind", "step", "time")
    ]
    return ", ".join(told) or _EMPTY


def _nats(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.1%}"


def _share(record: Record, share: str, number: str) -> str:
    """A share with the half width of its 95 % interval."""
    if record.get(share) is None:
        return _EMPTY
    return f"{record[share]:.1%} ± {confidence(record[share], record[number]):.1%}"
