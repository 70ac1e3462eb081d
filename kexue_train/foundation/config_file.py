"""Configuration values from a YAML file and from ``section.key=value`` overrides, with the lines they stand in."""

from __future__ import annotations

import difflib
import glob
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel

from kexue_train.foundation.config import OVERRIDDEN
from kexue_train.foundation.errors import ConfigError

logger = logging.getLogger(__name__)

# PyYAML follows YAML 1.1, where 3e-4 is a string; YAML 1.2 (and every reader) says it is a number.
_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$|^[-+]?\d[\d_]*\.\d*$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the float rule of YAML 1.2; a key must be text or a whole number, and given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str | int] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if type(key) not in (str, int):  # a bool, which YAML 1.1 makes of "on", is an int too
                _refuse_key(key_node, f"key {key!r} is not text; quote it")
            if key in seen:
                _refuse_key(key_node, f"key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refuse_key(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read one YAML mapping and the line (1-based) of each of its dotted keys.

    Raises:
        ConfigError: If the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4)
        hint = f", did you mean {path.parent / near[0]}?" if near else "; give the path of a run's YAML file"
        raise ConfigError(f"{path}: no such configuration file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a UTF-8 text file ({error}); check its permissions and encoding"
        ) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {type(values).__name__}, expected a mapping of sections such as 'shuffle:' and 'train:'"
        )
    return values, dict(_key_lines(node))


def read_with_overrides(
    path: Path, overrides: Sequence[str], renamed: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Read YAML as ``read_yaml`` does and apply ``section.key=value`` overrides; their keys have the line 0.

    Args:
        path: The file.
        overrides: The overrides.
        renamed: Old dotted keys that are still accepted, and their new names, which the result has.

    Raises:
        ConfigError: As ``read_yaml`` and ``apply_overrides``; or if a key of the file is given by both names.
    """
    values, lines = read_yaml(path)
    if renamed:
        try:
            values = move_renamed_keys(values, renamed, where=str(path))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        lines = {new_key(key, renamed): line for key, line in lines.items()}
    keys = [new_key(override.partition("=")[0], renamed or {}) for override in overrides]
    kept = {name: line for name, line in lines.items() if not name.startswith(tuple(f"{key}." for key in keys))}
    return apply_overrides(values, overrides, renamed), kept | dict.fromkeys(keys, OVERRIDDEN)


def resolve_relative_paths(
    values: dict[str, Any], lines: Mapping[str, int], file: Path, keys: Sequence[str]
) -> dict[str, Any]:
    """Return ``values`` with absolute paths: those of the file start at its folder, of overrides at the current one.

    So a configuration means the same wherever a command runs. A path that is missing there but lies in the current
    folder, where all of them started before, is taken from there with a warning, until the next release.

    Args:
        values: As ``read_with_overrides`` gives them.
        lines: The lines of the keys, likewise.
        file: The file.
        keys: Dotted keys of paths, of lists of them, or of mappings from them; a section of a key may be a list of
            sections. URIs, ``-``, and the ``@`` before the
            name of a list stay as they are.
    """
    result: dict[str, Any] = _copied_sections(values)
    for key in keys:
        *parents, last = key.split(".")
        holders: list[Any] = [result]
        for part in parents:
            holders = [inner for holder in holders if isinstance(holder, dict) for inner in _sections_in(holder, part)]
        names = [key, *(key[:end] for end, char in enumerate(key) if char == ".")]
        is_override = any(lines.get(name) == OVERRIDDEN for name in names)
        folder = Path.cwd() if is_override else file.absolute().parent
        for holder in holders:
            if isinstance(holder, dict) and holder.get(last):
                holder[last] = _resolved(holder[last], folder, f"{file}: {key}")
    return result


def _sections_in(holder: dict[str, Any], name: str) -> list[Any]:
    """Return what stands under ``name``, of a list each entry, so that these may be changed."""
    value = holder.get(name)
    if not isinstance(value, list):
        return [value]
    holder[name] = [_copied_sections(entry) for entry in value]
    return list(holder[name])


def _resolved(value: Any, folder: Path, where: str) -> Any:
    if isinstance(value, list):
        return [_resolved(entry, folder, where) for entry in value]
    if isinstance(value, dict):
        return {_resolved(name, folder, where): entry for name, entry in value.items()}
    if not isinstance(value, str) or value == "-" or "://" in value:
        return value
    mark = "@" if value.startswith("@") else ""
    path = Path(value.removeprefix(mark)).expanduser()
    if path.is_absolute():
        return value
    chosen, before = (os.path.abspath(start / path) for start in (folder, Path.cwd()))  # noqa: PTH100  # keeps links
    if not _is_there(chosen) and _is_there(before):
        _note_once(
            f"{where}: relative paths start at the folder of the file, which has no {path}; that of the current folder "
            f"is taken until the next release: write {before}"
        )
        chosen = before
    return mark + chosen


def _is_there(pattern: str) -> bool:
    return os.path.lexists(pattern) or any(glob.iglob(pattern, recursive=True))  # noqa: PTH207  # absolute


def move_renamed_keys(values: Mapping[str, Any], renamed: Mapping[str, str], *, where: str) -> dict[str, Any]:
    """Return ``values`` with what stands under old keys under the new ones; a note in the log names these.

    Args:
        values: Sections inside each other; stays as it is.
        renamed: Old dotted key -> new dotted key.
        where: File or section, for the note.

    Raises:
        ValueError: If a key is given by both names.
    """
    result: dict[str, Any] = _copied_sections(values)
    moved = [(old, new) for old, new in renamed.items() if _take_key(result, old, new)]
    if moved:
        names = ", ".join(f"'{old}' is now '{new}'" for old, new in moved)
        _note_once(f"{where}: {names}; the old names are accepted until the next release")
    return result


def new_key(key: str, renamed: Mapping[str, str]) -> str:
    """Return the new name of a dotted key, or of one below a renamed one; ``key`` itself if it was not renamed."""
    old = next((old for old in renamed if key == old or key.startswith(f"{old}.")), None)
    return key if old is None else renamed[old] + key.removeprefix(old)


def _take_key(values: dict[str, Any], old: str, new: str) -> bool:
    *parents, last = old.split(".")
    holder: Any = values
    for part in parents:
        holder = holder.get(part) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or last not in holder:
        return False
    *sections, name = new.split(".")
    target = values
    for part in sections:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            return False  # the validation says what is wrong with it
    if name in target:
        raise ValueError(f"'{old}' is the old name of '{new}', and both are given; remove '{old}'")
    target[name] = holder.pop(last)
    return True


def _copied_sections(values: Any) -> Any:
    if isinstance(values, BaseModel):
        return {name: getattr(values, name) for name in values.model_fields_set}
    return {key: _copied_sections(value) for key, value in values.items()} if isinstance(values, Mapping) else values


@lru_cache(maxsize=64)
def _note_once(message: str) -> None:
    logger.warning("%s", message)


def apply_overrides(
    values: dict[str, Any], overrides: Sequence[str], renamed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` set; a value is read as YAML, so ``3e-4`` and ``[1, 2]`` work.

    Args:
        values: Sections inside each other.
        overrides: The overrides.
        renamed: Old dotted keys that are still accepted in overrides, and their new names.

    Raises:
        ConfigError: If an override has no ``=`` or goes through a key that is not a section, or if overrides give a key
            by its old and its new name.
    """
    given = [override.partition("=")[0] for override in overrides]
    for old in given:
        new = new_key(old, renamed or {})
        if new != old:
            if new in given:
                raise ConfigError(f"override '{old}' is the old name of '{new}', and both are given; remove '{old}'")
            _note_once(f"override: '{old}' is now '{new}'; the old name is accepted until the next release")
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"override {override!r} is not of the form section.key=value, for example train.steps=2000"
            )
        try:
            value = yaml.load(text, Loader=_Loader)  # a SafeLoader
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is not valid YAML; quote it if it is text") from None
        target = result
        *parents, last = new_key(key, renamed or {}).split(".")
        for part in parents:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise ConfigError(f"override {override!r}: '{part}' is a value, not a section with keys of its own")
        target[last] = value
    return result


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _key_lines(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{prefix}{index}", item.start_mark.line + 1
            yield from _key_lines(item, f"{prefix}{index}.")
