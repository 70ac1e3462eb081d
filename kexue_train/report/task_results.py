"""Results of tasks, by the form of their file, whatever its name: zero-shot, sentence vectors, fine-tuning.

A file of another form is shown as it is: its plain values in one table, and each list of records as a table with a
column per key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from kexue_train.downstream.evaluate.zero_shot.results import ZeroShotResults
from kexue_train.report.run_data import Record, RunData
from kexue_train.report.score import Score
from kexue_train.report.tables import EMPTY, Table

_MAX_COLUMNS = 10
_NARROW = 4
_NOT_SHOWN = {"schema_version", "tool_version"}
_TASK_TYPES = {
    "classification": "text-classification",
    "tagging": "token-classification",
    "reading": "question-answering",
    "choice": "multiple-choice",
}
_COLUMN_NAMES = {"nsp": "NSP", "nsp transductive": "NSP transductive", "pet": "PET"}


class Results(NamedTuple):
    """What one file says."""

    tables: list[Table]
    scores: list[Score]


def read_results(name: str, record: Record) -> Results:
    """Tables and scores of ``evaluate/NAME.json``."""
    # Two forms of "tasks" and two of "sets"; each is told by a key that the other lacks.
    forms: dict[tuple[str, str], Callable[[Record], Results]] = {
        ("tasks", "means"): _zero_shot,
        ("sets", "means"): _similarity,
        ("sets", "loss"): _trained_vectors,
        ("tasks", "seeds"): _fine_tuned,
    }
    for keys, read in forms.items():
        if set(keys) <= record.keys():
            try:
                return read(record)
            except ValidationError:  # of another version
                break
    return Results(list(_plain_tables(name, record)), [])


def read_zero_shot(run: RunData) -> ZeroShotResults | None:
    """``zero_shot.json`` if it is there and of the form of this version."""
    try:
        return ZeroShotResults.model_validate(run.evaluations["zero_shot"])
    except (KeyError, ValidationError):
        return None


def _zero_shot(record: Record) -> Results:
    from kexue_train.downstream.evaluate.zero_shot.table import header_of, remarks_on, rows_of  # noqa: PLC0415  # as below

    results = ZeroShotResults.model_validate(record)
    others = dict.fromkeys(name for task in results.tasks for name in task.published)
    notes = [
        "Accuracy in percent.",
        *([f"Published, of other models: {', '.join(others)}."] if others else []),
        *remarks_on(results),
    ]
    own = [(task.task, column, value) for task in results.tasks for column, value in task.own_columns.items()]
    own += [("mean of all tasks", c, value) for c, value in results.means.items() if c in _COLUMN_NAMES]
    scores = [
        Score(task, "zero-shot-classification", "accuracy", f"zero-shot accuracy, {_COLUMN_NAMES[column]}", value)
        for task, column, value in own
    ]
    title = "Zero-shot tasks, without training for them"
    return Results([_table(title, header_of(results), rows_of(results), notes)], scores)


def _similarity(record: Record) -> Results:
    from kexue_train.downstream.evaluate.sentence_vectors.results import StsResults  # noqa: PLC0415  # loads torch: if needed
    from kexue_train.downstream.evaluate.sentence_vectors.table import header_of, remarks_on, rows_of  # noqa: PLC0415  # the same

    results = StsResults.model_validate(record)
    notes = ["Spearman correlation of cosines with people's scores, times 100.", *remarks_on(results)]
    scores = [
        Score(found.name, "sentence-similarity", "spearman", f"Spearman, {column}", value)
        for found in results.sets
        for column, value in found.own_columns.items()
    ]
    return Results([_table("Sentence similarity", header_of(results), rows_of(results), notes)], scores)


def _trained_vectors(record: Record) -> Results:
    from kexue_train.downstream.finetune.sentence_vectors.results import VectorResults  # noqa: PLC0415  # loads torch: if needed
    from kexue_train.downstream.finetune.sentence_vectors.table import HEADER, remarks_on, rows_of  # noqa: PLC0415  # the same

    results = VectorResults.model_validate(record)
    notes = [
        f"Times 100; trained with {results.loss} on {results.seeds} seeds, mean ± standard deviation.",
        *remarks_on(results),
    ]
    scores = [
        Score(found.name, "sentence-similarity", metric, f"{metric} after training with {results.loss}", spread.mean)
        for found in results.sets
        for metric, spread in found.after.get(found.split, {}).items()
    ]
    return Results([_table("Sentence vectors, trained", HEADER, rows_of(results), notes)], scores)


def _fine_tuned(record: Record) -> Results:
    from kexue_train.downstream.finetune.tasks.results import TaskResults  # noqa: PLC0415  # few runs have it
    from kexue_train.downstream.finetune.tasks.table import HEADER, remarks_on, rows_of  # noqa: PLC0415  # the same

    results = TaskResults.model_validate(record)
    notes = [f"In percent; the encoders over {results.seeds} seeds, mean ± standard deviation.", *remarks_on(results)]
    scores = [
        Score(task.task, _TASK_TYPES.get(task.kind, task.kind), metric, f"{metric} after fine-tuning", spread.mean)
        for task in results.tasks
        for encoder in task.encoders
        for metric, spread in encoder.scores.get(task.split, {}).items()
        if encoder.encoder == "pretrained" and metric == task.metric
    ]
    return Results([_table("Fine-tuned", HEADER, rows_of(results), notes)], scores)


def _table(caption: str, header: Sequence[str], rows: list[list[str]], notes: list[str]) -> Table:
    titles = ["", *(name.replace("-\n", "-").replace("\n", " ") for name in header[1:])]
    return Table(caption, titles, [[value or EMPTY for value in row] for row in rows], notes=notes, wide=True)


def _plain_tables(name: str, record: Record) -> Iterator[Table]:
    title = name.replace("_", " ").capitalize()
    lists = {key: value for key, value in record.items() if _is_list_of_records(value)}
    if plain := dict(_flatten({key: v for key, v in record.items() if key not in lists and key not in _NOT_SHOWN})):
        yield Table(f"{title}: overall", ["", ""], [[key, _write(value)] for key, value in plain.items()])
    for key, entries in lists.items():
        yield _table_of_records(title if len(lists) == 1 else f"{title}: {key.replace('_', ' ')}", entries)


def _table_of_records(caption: str, entries: list[Record]) -> Table:
    flat = [dict(_flatten(entry)) for entry in entries]
    keys = list(dict.fromkeys(key for entry in flat for key in entry))
    shown, left_out = keys[:_MAX_COLUMNS], keys[_MAX_COLUMNS:]
    rows = [[_write(entry.get(key)) for key in shown] for entry in flat]
    notes = [f"Left out here: {', '.join(left_out)}."] if left_out else []
    return Table(caption, shown, rows, notes=notes, wide=len(shown) > _NARROW)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _flatten(record: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by ``outer: inner``; lists are left out."""
    for key, value in record.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}: ")
        elif not isinstance(value, list):
            yield name, value


def _write(value: Any) -> str:
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
