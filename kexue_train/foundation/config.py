"""What every section of a run configuration has in common: frozen, strict, typed, with errors that name the key.

Nothing is converted silently: ``"5"`` is not an integer, an unknown key is refused with the nearest known one.
``config_file.py`` reads the values.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kexue_train.foundation.errors import ConfigError

OVERRIDDEN = 0
"""In place of the line of a value that does not come from the file."""


@dataclass(frozen=True)
class OptionName:
    """What a field is called on the command line where that is not ``--the-field``; stands in its ``Annotated``."""

    flag: str = ""
    short_flag: str = ""
    """Such as ``-n``."""
    old_flag: str = ""
    """A former name, accepted and not shown."""


class Config(BaseModel):
    """Base of every configuration section: immutable, strict types, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,  # the commands' help reads the fields and validates nothing
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Describe each field by the docstring below it, as ``use_attribute_docstrings`` does in ten times the time."""
        described = _attribute_docstrings(cls)
        for name, field in cls.model_fields.items():
            field.description = field.description or described.get(name)

    @classmethod
    def parse(
        cls,
        values: dict[str, Any],
        *,
        where: str,
        lines: Mapping[str, int] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Self:
        """Validate ``values``.

        Args:
            values: Keys and values, as JSON would hold them.
            where: The file or command, for messages.
            lines: Of the file, by dotted key, from ``read_with_overrides``.
            flags: Options of the command by dotted key, which messages name in place of the key.

        Raises:
            ConfigError: One paragraph that lists every problem with its key, value and what is allowed.
        """
        try:
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            problems = [_explain(cls, problem, where, lines or {}, flags or {}) for problem in error.errors()]
            raise ConfigError("\n".join(problems)) from None


def refuse_without_effect(config: Config, *names: str, because: str) -> None:
    """Refuse settings of ``config`` that another one leaves without effect; their defaults are in every resolved file.

    Raises:
        ValueError: If one of ``names`` has another value than its default.
    """
    for name in names:
        value, default = getattr(config, name), type(config).model_fields[name].get_default(call_default_factory=True)
        if value != default:
            raise ValueError(f"{name}={value} has no effect {because}; remove it")


def _attribute_docstrings(cls: type[Any]) -> dict[str, str]:
    found = (node for node in _classes_of(cls.__module__) if node.name == cls.__name__)
    body = next(found, ast.ClassDef("", [], [], [], [])).body
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


@lru_cache(maxsize=1)
def _classes_of(module: str) -> list[ast.ClassDef]:
    path = getattr(sys.modules.get(module), "__file__", None)
    tree = ast.parse(Path(path).read_text(encoding="utf-8")) if path else ast.Module([], [])
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _explain(cls: type[BaseModel], problem: Any, where: str, lines: Mapping[str, int], flags: Mapping[str, str]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    line = next((lines[k] for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in lines), None)
    place = "override" if line == OVERRIDDEN else f"{where}:{line}" if line else where
    if problem["type"] == "extra_forbidden":
        known = _known_keys(cls, location[:-1])
        near = _nearest_key(cls, location[:-1], location[-1], known)
        allowed = f"allowed here: {', '.join(known)}" if known else "remove it"
        hint = f"did you mean '{near}'?" if near else allowed
        return f"{place}: unknown key '{key}', {hint}"
    if problem["type"] == "missing":
        return f"{place}: '{key}' is missing and has no default; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    if isinstance(problem["input"], dict):  # a whole section: naming it is enough
        return f"{place}: {key}: {message}"
    given = json.dumps(problem["input"], ensure_ascii=False, default=str)
    choices = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
    alike = difflib.get_close_matches(str(problem["input"]), choices, n=1)
    hint = f", did you mean '{alike[0]}'?" if alike else ""
    return f"{place}: {flags.get(key, key)}={given}: {message}{hint}"


def _nearest_key(cls: type[BaseModel], path: list[str], name: str, known: list[str]) -> str | None:
    """Return the known key that is spelled most like ``name``: one of this section, or of those inside or around it."""
    if path and name in _known_keys(cls, path[:-1]):
        return ".".join([*path[:-1], name])
    inside = [(part, key) for part in known for key in _known_keys(cls, [*path, part])]
    names = {f"{part}_{key}": f"{part}.{key}" for part, key in inside} | {key: f"{part}.{key}" for part, key in inside}
    names |= {key: key for key in known}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return names[near[0]] if near else None


def _known_keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # a place in a list
            continue
        field = cls.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        cls = inner
    return list(cls.model_fields)
