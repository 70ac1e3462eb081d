"""Read everything a run folder holds, whole or half: with labelled_tasks.py all of the report that touches files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kexue_train import __version__
from kexue_train.downstream.results.files import read_result
from kexue_train.downstream.results.result import EvaluationResult
from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.stage import Stage
from kexue_train.metrics.fields import SECONDS, Kind, Record
from kexue_train.metrics.file import describe_foreign, read_metric_lines
from kexue_train.report.labelled_tasks import read_task_lines, read_task_rows

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "ray",
    "prefect",
    "numpy",
    "pyarrow",
    "datasets",
)
_NO_RESULTS = (MANIFEST_NAME, "predictions.json")


@dataclass(frozen=True)
class RunData:
    """What is known of a run; an absent part is empty."""

    name: str
    folder: Path
    config_text: str
    config: Record
    stages: list[Record]
    """The record of each finished stage in the order of the data."""
    manifests: dict[str, Manifest]
    """By folder name: ``corpus``, ``shards``, ``tokenizer``, ``samples``, ``hf``, ``evaluate``."""
    metrics: list[Record]
    predictions: list[Record]
    results: dict[str, EvaluationResult]
    """The files of ``evaluate`` by name without ``.json``: first ``mlm``, then ``zero_shot`` and whatever there is."""
    training_entropy: float | None
    """Entropy in nats of the training tokens, from ``samples/token_counts.npy``."""
    versions: dict[str, str]
    last_written: datetime | None
    """When training or a stage last wrote something."""
    has_torn_line: bool
    """``metrics.jsonl`` ends in the middle of a line: it is being written, or its writer was killed."""
    problems: list[str] = field(default_factory=list)
    """Parts that are there but cannot be read, in words."""
    known_stages: Sequence[Stage[Any]] = ()
    """All stages that the run has, in order, as far as the caller knows them."""
    task_rows: dict[str, Manifest] = field(default_factory=dict)
    """Labelled rows of the supervised stage by task; ``contamination``: what of them the corpus has."""
    task_lines: list[Record] = field(default_factory=list)
    """Metrics of the labelled tasks, in order of writing."""

    def of_kind(self, *kinds: Kind) -> list[Record]:
        """Return the metrics of the given kinds, in order of writing."""
        return [record for record in self.metrics if record["kind"] in kinds]

    def curve(self, kind: Kind) -> list[Record]:
        """Return the metrics of ``kind`` by rising step; where steps were repeated, the last writing counts."""
        if kind not in self._curves:
            by_step = {record["step"]: record for record in self.of_kind(kind)}
            self._curves[kind] = [by_step[step] for step in sorted(by_step)]
        return self._curves[kind]

    @cached_property
    def _curves(self) -> dict[Kind, list[Record]]:
        return {}

    @cached_property
    def mlm(self) -> Record:
        """The contents of ``evaluate/mlm.json``; empty without it."""
        return self.results["mlm"].model_dump() if "mlm" in self.results else {}

    @property
    def is_complete(self) -> bool:
        """Whether the run has come as far as its evaluation."""
        return bool(self.mlm)

    @property
    def total_steps(self) -> int | None:
        """Steps the configuration asks for."""
        steps = (self.config.get("train") or {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def training_seconds(self) -> float:
        """Seconds spent training, over all restarts."""
        return max((SECONDS.amount(record) for record in self.of_kind(Kind.TRAIN)), default=0.0)


def load_run(run_dir: Path, stages: Sequence[Stage[Any]] = ()) -> RunData:
    """Read the run folder ``run_dir``; ``stages`` are those that the run has, in order.

    Raises:
        ArtifactError: If it is not a run folder.
    """
    run = RunDir(run_dir)
    if not run.config.is_file():
        raise ArtifactError(
            f"{run_dir}: no config.yaml, so not a run folder; give the folder that 'kexue pipeline --run-dir' wrote"
        )
    problems: list[str] = []
    text = run.config.read_text(encoding="utf-8")
    config = _parse_config(text, problems)
    metrics = read_metric_lines(run.pretrain / "metrics.jsonl")
    if metrics.foreign:
        problems.append(describe_foreign(run.pretrain / "metrics.jsonl", metrics.foreign))
    return RunData(
        name=str(config.get("name") or run_dir.resolve().name),
        folder=run_dir,
        config_text=text,
        config=config,
        stages=_read_stages(run, [stage.name for stage in stages]),
        manifests=_read_manifests(run, problems),
        metrics=metrics.records,
        predictions=_read_predictions(run.evaluate / "predictions.json", problems),
        results=_read_results(run.evaluate, problems),
        training_entropy=_training_entropy(run.samples / "token_counts.npy"),
        versions=installed_versions(),
        last_written=_last_written(run.pretrain / "metrics.jsonl", run.stages),
        has_torn_line=metrics.is_torn,
        problems=problems,
        task_rows=read_task_rows(run),
        task_lines=read_task_lines(run),
        known_stages=[stage for stage in stages if stage.is_wanted(config)],
    )


def read_stage_records(path: Path) -> list[Record]:
    """Return the objects of a JSON-lines file; a line torn by a kill is left out, a missing file is empty."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def installed_versions() -> dict[str, str]:
    """Return the versions of the installation that writes the report."""
    versions = {"kexue_train": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _parse_config(text: str, problems: list[str]) -> Record:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(f"config.yaml is not valid YAML: {' '.join(str(error).split())}")
        return {}
    return config if isinstance(config, dict) else {}


def _read_stages(run: RunDir, order: Sequence[str]) -> list[Record]:
    """Return the last record of each stage that did work: that of finding it done later would hide its time."""
    latest: dict[str, Record] = {}
    for record in read_stage_records(run.stages):
        name = str(record.get("stage"))
        if name not in latest or record.get("status") != "found":
            latest[name] = record
    return sorted(latest.values(), key=lambda r: order.index(r["stage"]) if r["stage"] in order else len(order))


def _read_manifests(run: RunDir, problems: list[str]) -> dict[str, Manifest]:
    """Return the manifests by folder; not of training, nor of variants such as ``samples-64``."""
    manifests = {}
    for path in sorted(run.root.glob(f"*/{MANIFEST_NAME}")):
        folder = path.parent
        if folder == run.pretrain or not folder.name.isidentifier():
            continue
        try:
            manifests[folder.name] = read_manifest(folder)
        except ArtifactError as error:
            problems.append(str(error))
    return manifests


def _read_predictions(path: Path, problems: list[str]) -> list[Record]:
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path} is not valid JSON ({error})")
        return []
    return value if isinstance(value, list) else []


def _read_results(folder: Path, problems: list[str]) -> dict[str, EvaluationResult]:
    paths = [path for path in folder.glob("*.json") if path.name not in _NO_RESULTS]
    results = {}
    for path in sorted(paths, key=lambda path: (path.stem != "mlm", path.name)):
        try:
            results[path.stem] = read_result(path)
        except ArtifactError as error:
            problems.append(str(error))
    return results


def _last_written(*paths: Path) -> datetime | None:
    times = [path.stat().st_mtime for path in paths if path.is_file()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _training_entropy(path: Path) -> float | None:
    try:
        counts = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError):
        return None
    share = counts[counts > 0] / max(1.0, counts.sum())
    return float(-(share * np.log(share)).sum()) if share.size else None
