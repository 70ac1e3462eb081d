"""Options of a command from the fields of a configuration class: name, default, help, choices and range, stated once.

A command names the class with ``options_of``; the class is loaded when that command is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import typer

from kexue_train.foundation.errors import ConfigError

Section = TypeVar("Section")
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Given(Generic[Section]):
    """The values of a configuration class that a command line gives."""

    section: Any
    values: dict[str, Any]
    command: str
    flags: dict[str, str]
    """Dotted key of a value -> the option that gives it, for error messages."""

    def config(self, **defaults: Any) -> Section:
        """Return the configuration: what was given, else ``defaults``, else the defaults of the class.

        Raises:
            ConfigError: If a value is not allowed.
        """
        made: Section = self.section.parse(defaults | self.values, where=self.command, flags=self.flags)
        return made


def options_of(place: str, *only: str) -> Any:
    """Mark the parameter of a command that receives the options of the class at ``module:Class``, as ``Given``.

    Args:
        place: The class; it is loaded when the command is asked for.
        only: Names of the fields offered; all without any.
    """
    return ConfigOptions(place, only)


@dataclass(frozen=True)
class ConfigOptions:
    """The class whose fields a command offers as options."""

    place: str
    only: tuple[str, ...]

    def options(self) -> list[FieldOption]:
        """Return an option for each field, and for each field of a section inside."""
        return [option for option in _options(self._section()) if not self.only or option.path[0] in self.only]

    def parameters(self) -> list[inspect.Parameter]:
        """Return the options as parameters that typer understands."""
        options = self.options()
        flags = {option.path[-1]: option.flag for option in reversed(options)}
        kind = inspect.Parameter.KEYWORD_ONLY
        return [
            inspect.Parameter(option.parameter, kind, default=None, annotation=option.annotation(flags))
            for option in options
        ]

    def take(self, arguments: dict[str, Any], command: str) -> Given[Any]:
        """Take the values of the options out of ``arguments``, which the command line gave to ``command``."""
        values: dict[str, Any] = {}
        options = self.options()
        for option in options:
            if (given := arguments.pop(option.parameter)) not in (None, [], ()):
                *sections, last = option.path
                target = values
                for section in sections:
                    target = target.setdefault(section, dict(option.section_defaults))
                value = option.read(given)
                target[last] = target.get(last, {}) | value if isinstance(value, dict) else value
        return Given(self._section(), values, command, {".".join(o.path): o.flag for o in reversed(options)})

    def _section(self) -> Any:
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class FieldOption:
    """One option: a field of a configuration class."""

    flag: str
    path: tuple[str, ...]
    """Names of the sections that the field lies in, and its own."""
    field: Any
    """Pydantic's description of the field."""
    default: Any
    section_defaults: dict[str, Any]
    """What the class gives the field's section by default."""
    is_hidden: bool = False
    short_flag: str = ""

    @property
    def parameter(self) -> str:
        """The name of the parameter that carries the value."""
        return "given" + re.sub(r"\W", "_", self.flag)

    @property
    def kinds(self) -> list[Any]:
        """The types and literal values that the field may have, and ``tuple`` or ``dict`` if it holds several."""
        return [kind for kind in _kinds(self.field.annotation) if kind not in (NoneType, Ellipsis)]

    def annotation(self, flags: dict[str, str]) -> Any:
        """Return the type for typer; ``flags`` are the options of all fields by name, for the help text."""
        kinds = self.kinds
        choices = [kind for kind in kinds if isinstance(kind, str)]
        text = re.sub(r"``(.*?)``", lambda quoted: flags.get(quoted[1], quoted[1]), self.field.description or "")
        limits = [words for entry in self.field.metadata for words in _limits(entry)]
        details = "; ".join([*self._default_in_words(), *limits])
        described = typer.Option(
            f"{self.flag}/--no-{self.flag.removeprefix('--')}" if bool in kinds else self.flag,
            *filter(None, [self.short_flag]),
            help=" ".join([*text.split(), *([f" [{details}]"] if details else [])]),
            metavar="KEY=NUMBER" if self._has_keys else f"<{'|'.join(choices) or kinds[0].__name__.lower()}>",
            hidden=self.is_hidden,
            autocompletion=lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)],
        )
        base = bool if bool in kinds else list[str] if self._has_keys or tuple in kinds else str
        return Annotated[base | None, described]

    def read(self, given: Any) -> Any:
        """Return the value for the configuration class of what the command line gives: text, texts or a flag."""
        if self._has_keys:
            return dict(self._read_pair(text) for text in given)
        return _number(given, self.kinds) if isinstance(given, str) else given

    @property
    def _has_keys(self) -> bool:
        return dict in self.kinds or hasattr(self.kinds[0], "model_fields")

    def _read_pair(self, text: str) -> tuple[str, float]:
        key, _, number = text.rpartition("=")
        try:
            if key:
                return key, float(number)
        except ValueError:
            pass
        raise ConfigError(f"{self.flag} {text!r} is not of the form KEY=NUMBER, such as {self.flag} wiki.jsonl=2")

    def _default_in_words(self) -> list[str]:
        if self.field.is_required() or self.is_hidden or self.default in (None, False, (), {}):
            return []
        words = self.flag if self.default is True else self.default
        return [f"default: {', '.join(words) if isinstance(words, tuple) else words}"]


def _options(section: Any, path: tuple[str, ...] = (), base: Any = None) -> Iterator[FieldOption]:
    from kexue_train.foundation.config import OptionName  # noqa: PLC0415  # loads pydantic

    set_by_default = base.model_dump(mode="json", exclude_unset=True) if base else {}
    for name, field in section.model_fields.items():
        if base or field.default_factory is field.annotation:  # a section that sets nothing by default is not made
            default = getattr(base, name, None)
        else:
            default = field.get_default(call_default_factory=True)
        known_as = next((entry for entry in field.metadata if isinstance(entry, OptionName)), OptionName())
        about = ((*path, name), field, default, set_by_default)
        if hasattr(field.annotation, "model_fields"):
            yield from _options(field.annotation, (*path, name), default)
        else:
            flag = known_as.flag or f"--{name.replace('_', '-')}"
            yield FieldOption(flag, *about, short_flag=known_as.short_flag)
        if known_as.old_flag:
            yield FieldOption(known_as.old_flag, *about, is_hidden=True)


def _kinds(annotation: Any) -> list[Any]:
    inner = [kind for argument in get_args(annotation) for kind in _kinds(argument)]
    container = [kind for kind in (get_origin(annotation),) if kind in (tuple, dict)]
    return [*inner, *container] or [annotation]


def _limits(entry: Any) -> list[str]:
    return [f"{word} {getattr(entry, key)}" for key, word in _LIMITS.items() if hasattr(entry, key)]


def _number(text: str, kinds: list[Any]) -> int | float | str:
    for kind in (int, float):
        if kind in kinds:
            try:
                number: int | float = kind(text)
                return number
            except ValueError:
                pass
    return text  # refused by the class, with the reason
