"""The figures of runs for Prometheus, read from their folders: no stage and no training knows that somebody looks.

Every number of a training line is a gauge ``kexue_training_KEY``, of a validation ``kexue_validation_KEY``, both of the
newest line; whatever happened is counted by kind; every finished stage has its time, rows and bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kexue_train.foundation.errors import ArtifactError, ResourceError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.metrics.fields import (
    LINES,
    SOURCE,
    SOURCE_ACCURACY,
    SOURCE_LOSS,
    SOURCE_PREDICTIONS,
    STEP,
    Kind,
    Metric,
    Record,
)
from kexue_train.metrics.file import read_metric_lines

Family = CounterMetricFamily | GaugeMetricFamily
_NEWEST = {Kind.TRAIN: "training", Kind.VALIDATION: "validation"}
"""Kinds of which the newest line is served, and what its gauges are called."""
_STAGE_FIELDS = {
    "seconds": "Time of the stage in its last run, in seconds.",
    "rows": "Rows that the stage wrote.",
    "bytes": "Bytes that the stage wrote.",
}


def serve(root: Path, host: str, port: int) -> str:
    """Serve the figures of the runs below ``root`` from a thread; returns the address.

    Args:
        root: A run folder, or a folder of run folders; runs that begin later are found.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Raises:
        ArtifactError: If ``root`` is not a folder.
        ResourceError: If the port is taken.
    """
    _require_folder(root)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(root))
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ResourceError(f"--host {host} --port {port}: cannot listen ({error.strerror}); give another") from None
    return f"http://{host}:{server.server_port}/metrics"


def read_figures(root: Path) -> list[dict[str, Any]]:
    """Return the name, the labels and the value of every figure; None stands for values that JSON does not have.

    Raises:
        ArtifactError: If ``root`` is not a folder.
    """
    _require_folder(root)
    samples = (sample for family in RunCollector(root).collect() for sample in family.samples)
    return [{"name": s.name, **s.labels, "value": s.value if math.isfinite(s.value) else None} for s in samples]


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise ArtifactError(f"{root}: is not a folder; give a run folder, or a folder of run folders such as runs")


class RunCollector(Collector):
    """Reads the runs below a folder whenever Prometheus asks; files that did not change are not read again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, _Lines] = {}

    def collect(self) -> Iterator[Family]:
        """Yield every figure of every run."""
        families: dict[str, Family] = {}
        for folder in find_runs(self._root):
            run, name = RunDir(folder), _name_of(folder)
            for stage in (("train", run.pretrain), ("supervise", run.supervised)):
                self._add_training(families, name, *stage)
            _add_stages(families, name, run.stages)
        yield from families.values()

    def _add_training(self, families: dict[str, Family], run: str, stage: str, folder: Path) -> None:
        path = folder / "metrics.jsonl"
        try:
            status = path.stat()
        except OSError:
            return
        lines = self._known.get(path)
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if lines is None or lines.version != version:
            lines = self._known[path] = _Lines.of(read_metric_lines(path).records, version)
        labels = [run, stage]
        for kind, record in lines.newest.items():
            for metric in (STEP, *(entry for entry in LINES[kind] if isinstance(entry, Metric))):
                if (value := metric.of(record)) is not None:
                    family = _gauge(families, f"kexue_{_NEWEST[kind]}_{metric.key}", _describe(metric))
                    family.add_metric(labels, value)
        for source, record in lines.sources.items():
            for metric in (SOURCE_LOSS, SOURCE_ACCURACY, SOURCE_PREDICTIONS):
                if (value := metric.of(record)) is not None:
                    family = _gauge(families, f"kexue_validation_{metric.key}", _describe(metric), "source")
                    family.add_metric([*labels, source], value)
        events = _counter(families, "kexue_training_events", "Lines of metrics.jsonl by kind: what happened so far.")
        for kind, number in sorted(lines.events.items()):
            events.add_metric([*labels, kind.value], number)
        written = _gauge(families, "kexue_training_written_timestamp_seconds", "When training wrote its last line.")
        written.add_metric(labels, status.st_mtime)


@dataclass
class _Lines:
    """What is served of one file of metrics."""

    version: tuple[int, int, int]
    newest: dict[Kind, Record] = field(default_factory=dict)
    events: Counter[Kind] = field(default_factory=Counter)
    sources: dict[str, Record] = field(default_factory=dict)
    """The newest line of each source of a mixture."""

    @classmethod
    def of(cls, records: Iterable[Record], version: tuple[int, int, int]) -> _Lines:
        lines = cls(version)
        for record in records:
            kind = record["kind"]
            if kind in _NEWEST:
                lines.newest[kind] = record
            elif kind is Kind.SOURCE:
                lines.sources[str(SOURCE.of(record))] = record
            elif kind is not Kind.TASK:
                lines.events[kind] += 1
        return lines


def find_runs(root: Path) -> list[Path]:
    """Return ``root`` if it is a run folder, else the run folders in it, with all their generations."""
    folders = [root] if _is_run(root) else sorted(path for path in root.iterdir() if _is_run(path))
    generations = (path for folder in folders for path in sorted(RunDir(folder).generations.glob("*")))
    return [*folders, *filter(_is_run, generations)]


def _is_run(folder: Path) -> bool:
    return (folder / ".run").is_file()


def _name_of(folder: Path) -> str:
    is_generation = folder.parent.name == "generations"
    return f"{folder.parent.parent.name}/generations/{folder.name}" if is_generation else folder.name


def _add_stages(families: dict[str, Family], run: str, path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            stage = str(record["stage"])
        except (ValueError, TypeError, KeyError):  # torn by a kill
            continue
        for key, text in _STAGE_FIELDS.items():
            family = _gauge(families, f"kexue_stage_{key}", text)
            _replace(family, [run, stage], float(record.get(key) or 0))


def _replace(family: GaugeMetricFamily, labels: list[str], value: float) -> None:
    """Set a gauge, in the place of one that an earlier line has set."""
    wanted = dict(zip(("run", "stage"), labels, strict=True))
    family.samples[:] = [sample for sample in family.samples if sample.labels != wanted]
    family.add_metric(labels, value)


def _gauge(families: dict[str, Family], name: str, text: str, *more: str) -> GaugeMetricFamily:
    family = families.setdefault(name, GaugeMetricFamily(name, text, labels=["run", "stage", *more]))
    assert isinstance(family, GaugeMetricFamily)
    return family


def _counter(families: dict[str, Family], name: str, text: str) -> CounterMetricFamily:
    family = families.setdefault(name, CounterMetricFamily(name, text, labels=["run", "stage", "kind"]))
    assert isinstance(family, CounterMetricFamily)
    return family


def _describe(metric: Metric) -> str:
    unit = f", in {metric.unit}" if metric.unit else ""
    return f"{metric.label[:1].upper()}{metric.label[1:]}{unit}, of the newest line."
