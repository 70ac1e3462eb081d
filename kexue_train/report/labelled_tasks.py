"""What the report says of the supervised stage: its tasks, their rows, their held-out scores, and the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kexue_train.foundation.artifacts import Manifest, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.metrics.fields import EMPTY, TASK, TASK_ACCURACY, TASK_LOSS, TASK_SPLIT, Kind, Record
from kexue_train.metrics.file import read_metric_lines


def read_task_rows(run: RunDir) -> dict[str, Manifest]:
    """Return the manifests of the labelled rows by task, and under ``contamination`` that of the comparison."""
    rows = run.supervised.with_name(f"{run.supervised.name}-rows")
    found = {}
    for path in sorted(rows.glob("rows/*/manifest.json")) + sorted(rows.glob("contamination/manifest.json")):
        try:
            found[path.parent.name] = read_manifest(path.parent)
        except ArtifactError:  # half-made, or damaged: the stage says so when it runs
            continue
    return found


def read_task_lines(run: RunDir) -> list[Record]:
    """Return the lines on labelled tasks of the stage's metrics."""
    lines = read_metric_lines(run.supervised / "metrics.jsonl").records
    return [line for line in lines if line["kind"] == Kind.TASK]


def task_rows_of_table(manifests: Mapping[str, Manifest], lines: Sequence[Record]) -> list[list[str]]:
    """Return a row for each task: rows, held-out rows, first and last held-out loss, last accuracy, found texts."""
    contamination = manifests["contamination"].statistics if "contamination" in manifests else {}
    table = []
    for name, manifest in manifests.items():
        if manifest.kind != "labelled_rows":
            continue
        scored = [line for line in lines if TASK.of(line) == name and TASK_SPLIT.of(line) == "heldout"]
        first, last = (scored[0], scored[-1]) if scored else ({}, {})
        heldout = int(manifest.statistics["heldout_rows"])
        table.append(
            [
                name,
                str(manifest.statistics["task_kind"]),
                f"{manifest.rows - heldout:,}",
                f"{sum(manifest.statistics['refused'].values()):,}",
                f"{heldout:,}",
                TASK_LOSS.text(first),
                TASK_LOSS.text(last),
                TASK_ACCURACY.text(last),
                _found(contamination.get(name)),
            ]
        )
    return table


HEADER = ["task", "kind", "rows", "refused", "held out", "first loss", "last loss", "last accuracy", "in the corpus"]
_SCORES = (
    "Losses in nats and accuracies of labels on the held-out rows, when the stage first scored them and at its end; "
    "labels of tagging are those of tokens."
)
_CORPUS = "In the corpus: development and test texts that a document has as they are + nearly, of how many."
NOTES = [_SCORES, _CORPUS]


def _found(counts: Any) -> str:
    return f"{counts['exact']:,} + {counts['near']:,} of {counts['texts']:,}" if isinstance(counts, dict) else EMPTY
