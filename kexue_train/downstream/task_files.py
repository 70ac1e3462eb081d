"""Files of evaluation data: JSON Lines -> records, templates filled with their values, YAML files of tasks."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kexue_train.foundation.config_file import read_yaml
from kexue_train.foundation.errors import ConfigError, EvaluationError

T = TypeVar("T")

_FIELD = re.compile(r"\{([^{}]*)\}")


class TaskEntry(NamedTuple):
    """One task in a YAML file, not yet checked."""

    values: Any
    where: str
    """File and name, for messages."""
    line: str
    """File and line, for messages."""
    lines: dict[str, int]
    """Line of every key of the task."""


def read_catalogue(package: str, name: str, parse: Callable[[TaskEntry], T]) -> dict[str, T]:
    """Return the tasks of the YAML file ``name`` that ``package`` brings along: name -> task."""
    with as_file(files(package) / name) as path:
        return read_task_file(path, parse)


def read_task_file(path: Path, parse: Callable[[TaskEntry], T]) -> dict[str, T]:
    """Return the tasks of one YAML file: name -> task.

    Raises:
        ConfigError: If the file cannot be read or holds no task, or as ``parse``.
    """
    values, lines = read_yaml(path)
    if not values:
        raise ConfigError(f"{path}: holds no task; expected names, each with the keys of a task below it")
    tasks = {}
    for name, entry in values.items():
        own = {key.removeprefix(f"{name}."): line for key, line in lines.items() if key.startswith(f"{name}.")}
        tasks[str(name)] = parse(TaskEntry(entry, f"{path}, {name}", f"{path}:{lines[str(name)]}: '{name}'", own))
    return tasks


def choose_tasks(chosen: Sequence[str], known: Mapping[str, T], parse: Callable[[TaskEntry], T]) -> dict[str, T]:
    """Return the tasks named in ``chosen``, each a ``known`` name or the path of a YAML file.

    Raises:
        ConfigError: If a name is not known, a file cannot be read, or a task in it is wrong.
    """
    tasks: dict[str, T] = {}
    for name in chosen:
        if name in known:
            tasks[name] = known[name]
        elif is_task_file(name):
            tasks |= read_task_file(Path(name), parse)
        else:
            raise ConfigError(f"there is no task {name!r}; give a YAML file, or one of {', '.join(known)}")
    return tasks


def is_task_file(name: str) -> bool:
    """Return whether ``name`` is the path of a YAML file rather than the name of a known task."""
    return Path(name).suffix in (".yaml", ".yml")


@dataclass(frozen=True)
class Record:
    """One line of a data file."""

    values: dict[str, Any]
    where: str
    """File and line, for messages."""

    def value(self, key: str) -> Any:
        """Return the value of ``key``; dots in it go into mappings.

        Raises:
            EvaluationError: If the record has no such value.
        """
        value: Any = self.values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise EvaluationError(
                    f"{self.where}: no value '{key}'; the record has {', '.join(self.values) or 'none at all'}"
                )
            value = value[part]
        return value

    def text(self, key: str) -> str:
        """Return the value of ``key`` as text; a list of texts is joined by commas.

        Raises:
            EvaluationError: If it is missing or not text.
        """
        return self._as_text(self.value(key), key)

    def texts(self, key: str) -> list[str]:
        """Return the texts in the list ``key``.

        Raises:
            EvaluationError: If it is no list of texts with at least one.
        """
        value = self.value(key)
        if not isinstance(value, list) or not value:
            raise EvaluationError(f"{self.where}: '{key}' is {_shown(value)}; expected a list of candidates")
        return [self._as_text(entry, key) for entry in value]

    def number(self, key: str) -> float:
        """Return the value of ``key`` as a number.

        Raises:
            EvaluationError: If it is missing, or no finite number.
        """
        value = self.value(key)
        try:
            number = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise EvaluationError(f"{self.where}: {key!r} is {value!r}; expected a number")
        return number

    def _as_text(self, value: Any, key: str) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return ",".join(value)
        raise EvaluationError(f"{self.where}: '{key}' is {_shown(value)}; expected text, a number, or a list of texts")


class Text(NamedTuple):
    """A filled template in three pieces; where it is too long, ``middle`` loses its end.

    With a blank between ``before`` and ``after`` (then ``middle`` is empty) these lose their outer ends instead.
    """

    before: str
    middle: str
    after: str


def read_data_file(path: Path) -> list[Record]:
    """Read the records of a JSON Lines file, which may be gzipped (.gz); blank lines are skipped.

    Raises:
        EvaluationError: If the file is missing, a line is no JSON object, or there is no record.
    """
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"damaged gzip data: {error}"
        raise EvaluationError(
            f"{path}: cannot be read ({reason}); give the folder that the data's paths start from"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            records.append(Record(_parse(line, f"{path}:{number}"), f"{path}:{number}"))
    if not records:
        raise EvaluationError(f"{path}: holds no record; expected one JSON object per line")
    return records


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{where}: not valid JSON ({error}); expected one JSON object per line") from None
    if not isinstance(value, dict):
        raise EvaluationError(f"{where}: holds {_shown(value)}; expected one JSON object per line")
    return value


def template_fields(template: str) -> set[str]:
    """Return the keys in ``template``."""
    return set(_FIELD.findall(template))


def fill_template(template: str, record: Record, label: str | None = None) -> str:
    """Return ``template`` with the values of ``record``, and ``label`` for ``{label}``.

    Raises:
        EvaluationError: If the record lacks a value.
    """
    return "".join(_values(template, record, label))


def fill_text(template: str, record: Record, blank: str | None = None) -> Text:
    """Return ``template`` with the values of ``record``, in pieces: around ``blank``, or around the longest value.

    Raises:
        EvaluationError: If the record lacks a value, or the text does not hold ``blank`` once.
    """
    values = _values(template, record)
    if blank is None:
        longest = max(range(1, len(values), 2), key=lambda i: len(values[i]), default=0)
        return Text("".join(values[:longest]), values[longest], "".join(values[longest + 1 :]))
    text = "".join(values)
    if text.count(blank) != 1:
        raise EvaluationError(
            f"{record.where}: the text has the blank {blank!r} {text.count(blank)} times; expected once"
        )
    before, _, after = text.partition(blank)
    return Text(before, "", after)


def _values(template: str, record: Record, label: str | None = None) -> list[str]:
    """Return literal text and values in turn."""
    pieces = _FIELD.split(template)
    for i in range(1, len(pieces), 2):
        pieces[i] = label if label is not None and pieces[i] == "label" else record.text(pieces[i])
    return pieces


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"
