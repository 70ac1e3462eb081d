"""What the corpus is made of, and which of its documents are dropped."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from kexue_train.corpus.formats import FormatChoice, allowed_suffixes
from kexue_train.foundation.config import Config, OptionName, refuse_without_effect
from kexue_train.foundation.runtime import check_size

MAX_WEIGHT = 1000
"""How often a document may be taken at most."""
PublishedFilter = Literal["gopher", "gopher_repetition", "c4", "fineweb"]


def names_will_do(schema: dict[str, Any]) -> None:
    """Tell editors, in the schema of a field of ``FilterConfig``, that a name or a list of names is as good."""
    name = {"enum": list(get_args(PublishedFilter)), "type": "string"}
    section = {key: schema.pop(key) for key in ("$ref", "allOf") if key in schema}
    schema["anyOf"] = [section, name, {"items": name, "type": "array"}]


class FilterConfig(Config):
    """The section ``filters``: which documents are dropped. null switches a rule off.

    A list of names, such as ``filters: [gopher, fineweb]``, stands for ``published``.
    """

    min_chars: int | None = Field(default=None, gt=0)
    """Documents of fewer characters (Unicode code points) are dropped."""
    max_chars: int | None = Field(default=None, gt=0)
    """Documents of more characters are dropped."""
    min_letter_share: float | None = Field(default=None, gt=0, le=1)
    """Documents with a smaller share of letters, ideographs and vowel signs among their visible characters are dropped:
    tables of numbers, walls of punctuation. Prose has 0.7 to 0.95; 0.5 is a good limit."""
    max_unbroken_share: float | None = Field(default=None, gt=0, le=1)
    """Documents with a larger share of their bytes in runs of 40 or more ASCII characters without white space are
    dropped: base64, hexadecimal, lists of addresses, minified code. Prose has 0; 0.2 is a good limit."""
    max_repeated_line_share: float | None = Field(default=None, gt=0, le=1)
    """Documents with a larger share of their characters in lines that stood before in the document are dropped; white
    space around a line does not count. 0.2 is the limit of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1)."""
    max_repetition: float | None = Field(default=None, gt=0, le=1)
    """Documents where a larger share of all stretches of 32 bytes (UTF-8; one begins at each byte) stood before in the
    document are dropped: text copied over and over, whatever its lines. Prose has 0 to 0.1; 0.3 is a good limit."""

    published: Annotated[tuple[PublishedFilter, ...], OptionName("--published-filter")] = ()
    """Filters of published corpora with their published limits. They were made for English web pages; rules about words
    do not judge texts in scripts that do not set words apart."""

    @model_validator(mode="before")
    @classmethod
    def _names_stand_for_published(cls, values: Any) -> Any:
        names = [values] if isinstance(values, str) else values
        if isinstance(names, list):
            return {"published": tuple(names)}
        if isinstance(names, dict) and isinstance(names.get("published"), list):
            return names | {"published": tuple(names["published"])}
        return names

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> Self:
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars}), so every document would be"
                " dropped: swap them, or set one to null"
            )
        return self

    @property
    def is_active(self) -> bool:
        """Whether any rule is set."""
        return any(value not in (None, ()) for _, value in self)


TextKeys = str | tuple[str, ...]


def check_text_key(value: TextKeys | None) -> TextKeys | None:
    """Refuse a setting that names no key, or one twice; for a validator."""
    if value is None:
        return None
    if not value or not all(value):
        raise ValueError("name a key or column of the inputs, such as text")
    if not isinstance(value, str) and len(set(value)) < len(value):
        raise ValueError("name each key or column once")
    return value


class NamedSource(Config):
    """An entry of ``corpus.sources``: inputs that belong together, and how often their documents are taken."""

    name: str = Field(max_length=64, pattern=r"^\w[\w.+-]*$")
    """What the source is called in columns, tables and metrics: letters, digits, and . _ + - within."""
    inputs: tuple[str, ...] = Field(min_length=1)
    """As ``corpus.inputs``."""
    weight: float = 1.0
    """How often every document of the source is taken, in (0, 1000]: 2 is twice, 0.5 is a uniformly random half, 2.5 is
    twice and a random half once more. It is no share: a source ten times as large has ten times the share."""
    filters: FilterConfig | None = Field(default=None, json_schema_extra=names_will_do)
    """Filters of this source in place of ``shuffle.filters``; {} switches them off."""
    format: FormatChoice | None = None
    """Format of the inputs in place of ``shuffle.format``."""
    document: Literal["line", "block", "file"] | None = None
    """What a document is in text files, in place of ``shuffle.document``."""
    text_key: TextKeys | None = None
    """Key or column of the text in place of ``shuffle.text_key``."""

    _check_text_key = field_validator("text_key")(check_text_key)

    @field_validator("weight")
    @classmethod
    def _is_a_weight(cls, value: float) -> float:
        if value == 0:
            raise ValueError("would take no document; remove the source")
        if not (0 < value <= MAX_WEIGHT and math.isfinite(value)):
            raise ValueError(
                f"allowed: above 0, at most {MAX_WEIGHT}; a weight is how often each document is taken, such as 2 or "
                "0.5, and no share or number of tokens"
            )
        return value


class CorpusConfig(Config):
    """The section ``corpus``."""

    source: Literal["installed_docs", "files"] = "files"
    """``files``: the files named in ``inputs``; ``installed_docs``: the documentation installed on this machine."""
    inputs: tuple[str, ...] = Field(
        default=(),
        description="Files, folders, globs, ``@list`` files, ``-``, URIs or ``hf://`` data sets; a relative one "
        "starts at the folder of the configuration file, in an override at the current folder; "
        f"suffixes: {allowed_suffixes()}.",
    )
    sources: tuple[NamedSource, ...] = Field(default=(), max_length=64)
    """In place of ``inputs``: several corpora with names, each with its weight, filters and format. The name of a
    document's source goes with it, so that every stage counts by source."""
    max_size: str = "16MB"
    """With ``installed_docs``: about how much text to take, such as 16MB."""

    _check_size = field_validator("max_size")(check_size)

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[NamedSource, ...]) -> tuple[NamedSource, ...]:
        check_names_differ(sources)
        return sources

    @model_validator(mode="after")
    def _inputs_fit_source(self) -> Self:
        for name in ("inputs", "sources"):
            if self.source == "installed_docs" and getattr(self, name):
                raise ValueError(f"'{name}' is given though source is installed_docs: remove it, or set source: files")
        if self.inputs and self.sources:
            raise ValueError(
                "'inputs' and 'sources' are both given; make the inputs a source of their own, such as "
                f"{{name: other, inputs: [{self.inputs[0]}]}}, and remove 'inputs'"
            )
        if self.source == "files":
            refuse_without_effect(self, "max_size", because="with source: files, which are read whole")
        return self


def check_names_differ(sources: tuple[NamedSource, ...]) -> None:
    """Refuse two sources of one name.

    Raises:
        ValueError: Names them.
    """
    for name, number in Counter(source.name for source in sources).items():
        if number > 1:
            raise ValueError(
                f"{number} sources are called '{name}'; give each another name, or make them one source with the "
                "inputs of both"
            )
