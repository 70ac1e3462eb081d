"""Write and read result files; the file names the kind of its contents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kexue_train.downstream.results.explanation import Explanation
from kexue_train.downstream.results.few_shot import FewShotResults
from kexue_train.downstream.results.fine_tuning import FineTuningResults
from kexue_train.downstream.results.held_out import HeldOutResults
from kexue_train.downstream.results.paraphrase import ParaphraseResults
from kexue_train.downstream.results.result import EvaluationResult, Headline, ResultFailure, ResultTable, Score
from kexue_train.downstream.results.similarity import StsResults
from kexue_train.downstream.results.trained_vectors import VectorResults
from kexue_train.downstream.results.zero_shot import ZeroShotResults
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ArtifactError

RESULT_TYPES = (
    HeldOutResults,
    ZeroShotResults,
    StsResults,
    FineTuningResults,
    VectorResults,
    FewShotResults,
    ParaphraseResults,
    Explanation,
)
"""The contents of every kind of result."""
_TYPE_OF_KIND: dict[str, type[BaseModel]] = {cls.model_fields["kind"].default: cls for cls in RESULT_TYPES}
_DIGITS = 7  # more would be noise of the order of summation
_MAX_COLUMNS = 10
_NOT_SHOWN = {"schema_version", "tool_version"}


def write_result(path: Path, result: EvaluationResult) -> None:
    """Write ``result`` to ``path``, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_text(result.model_dump(mode="json")))


def read_result(path: Path) -> EvaluationResult:
    """Read a result file of any kind; contents of an unknown form are shown as they are.

    Raises:
        ArtifactError: If the file cannot be read, or is not a JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise ArtifactError(f"{path}: holds no result; expected a JSON object")
    return parse_result(path.stem, record)


def parse_result(name: str, record: dict[str, Any]) -> EvaluationResult:
    """Return the result with the contents ``record``; ``name`` stands for it where the form is unknown."""
    record = name_kind_of_old_file(record)
    contents = _TYPE_OF_KIND.get(str(record.get("kind")))
    if contents is None:
        return UnknownResult(name, record)
    try:
        return contents.model_validate(record)  # type: ignore[return-value]  # the classes of RESULT_TYPES
    except ValidationError:  # written by another version
        return UnknownResult(name, record)


def name_kind_of_old_file(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record`` with its kind, told by two of its keys if the file is too old to name it."""
    if "kind" in record:
        return record
    kinds = {
        ("mlm_loss", "baselines"): "held_out",
        ("tasks", "means"): "zero_shot",
        ("sets", "means"): "sentence_similarity",
        ("sets", "loss"): "trained_vectors",
        ("tasks", "seeds"): "fine_tuning",
        ("pieces", "at_baseline"): "explanation",
    }
    found = next((kind for keys, kind in kinds.items() if set(keys) <= record.keys()), None)
    return record if found is None else {"kind": found, **record}


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON, floats to seven digits."""
    return json.dumps(rounded(value), indent=2, ensure_ascii=False) + "\n"


def rounded(value: Any) -> Any:
    """Return ``value`` with every float in it to seven digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return value


class UnknownResult:
    """A file of another form, shown as it is: its plain values in one table, and each list of records as a table."""

    kind = "unknown"

    def __init__(self, name: str, record: dict[str, Any]) -> None:
        self.name, self.record = name, record

    @property
    def failures(self) -> list[ResultFailure]:
        """Nothing is known of failures."""
        return []

    def tables(self) -> list[ResultTable]:
        """Return the plain values, and a table of every list of records."""
        title = self.name.replace("_", " ").capitalize()
        lists = {key: value for key, value in self.record.items() if _is_list_of_records(value)}
        plain = {k: v for k, v in self.record.items() if k not in lists and k not in _NOT_SHOWN}
        rows = [[key, _write(value)] for key, value in _flatten(plain)]
        overall = [ResultTable(f"{title}: overall", ["", ""], rows)] if rows else []
        captions = {key: title if len(lists) == 1 else f"{title}: {key.replace('_', ' ')}" for key in lists}
        return overall + [_table_of_records(captions[key], entries)[0] for key, entries in lists.items()]

    def notes(self) -> list[str]:
        """Return which columns the tables leave out."""
        lists = [value for value in self.record.values() if _is_list_of_records(value)]
        omitted = [key for entries in lists for key in _table_of_records("", entries)[1]]
        return [f"Not shown here: {', '.join(omitted)}."] if omitted else []

    def scores(self) -> list[Score]:
        """Return nothing: it is not known which values say how good the model is."""
        return []

    def headlines(self) -> list[Headline]:
        """Return nothing: it is not known which values matter."""
        return []

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:  # noqa: ARG002  # the protocol's
        """Return the contents of the file."""
        return self.record


def _table_of_records(caption: str, entries: list[dict[str, Any]]) -> tuple[ResultTable, list[str]]:
    """Return the table, and the keys that it omits."""
    flat = [dict(_flatten(entry)) for entry in entries]
    keys = list(dict.fromkeys(key for entry in flat for key in entry))
    shown, omitted = keys[:_MAX_COLUMNS], keys[_MAX_COLUMNS:]
    return ResultTable(caption, shown, [[_write(entry.get(key)) for key in shown] for entry in flat]), omitted


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield plain values by ``outer: inner``; lists are omitted."""
    for key, value in record.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}: ")
        elif not isinstance(value, list):
            yield name, value


def _write(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
