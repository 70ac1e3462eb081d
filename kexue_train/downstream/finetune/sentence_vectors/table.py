"""Trained sentence vectors for people: a row per set and metric."""

from __future__ import annotations

from kexue_train.downstream.finetune.sentence_vectors.results import Scores, VectorResults, VectorSetResult
from kexue_train.downstream.finetune.tasks.results import Spread

HEADER = ["set", "train", "metric", "tf-idf", "before", "after"]


def rows_of(results: VectorResults) -> list[list[str]]:
    """Values times 100 of the split that is reported; after: mean ± standard deviation over seeds."""
    return [row for result in results.sets for row in _rows(result)]


def remarks_on(results: VectorResults) -> list[str]:
    """What failed, where dev stands for test, which sentences were cut."""
    remarks = [
        f"{result.name}: no {failure.what}: {failure.error}" for result in results.sets for failure in result.failures
    ]
    for result in results.sets:
        if result.records and result.split == "dev":
            remarks.append(f"{result.name}: scored on dev, which also chose the epoch, for lack of a test file")
        if result.cut:
            remarks.append(f"{result.name}: {result.cut} sentences cut to {results.max_length} tokens")
    return remarks


def _rows(result: VectorSetResult) -> list[list[str]]:
    split, rows = result.split, []
    train = f"{result.records.get('train', 0):,}"
    for metric in ["spearman"] if result.metric == "spearman" else ["accuracy", "mrr"] if result.metric else []:
        spread = result.after.get(split, {}).get(metric)
        numbers = [_number(result.words, result, metric), _number(result.before, result, metric)]
        rows.append([result.name, train, metric, *numbers, _spread(spread)])
    return rows


def _number(scores: Scores | None, result: VectorSetResult, metric: str) -> str:
    return f"{100 * scores[result.split][metric]:.1f}" if scores else ""


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{100 * spread.mean:.1f}" + ("" if spread.std is None else f" ± {100 * spread.std:.1f}")
