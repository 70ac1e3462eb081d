"""How the corpus is shuffled, and what more a shuffle into one file can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kexue_train.corpus.config import MAX_WEIGHT, FilterConfig, NamedSource, check_text_key, names_will_do
from kexue_train.corpus.formats import FormatChoice, OutputChoice
from kexue_train.foundation.config import Config, OptionName, refuse_without_effect
from kexue_train.foundation.runtime import check_size
from kexue_train.shuffle.near.config import NearConfig

SOURCE_COLUMN = "source"
"""The column of text shards with the name of each document's source, if the corpus is a mixture."""
_MAX_DRAWS = 2**32
"""Copies of a line are numbered in 32 bits."""


class ShuffleConfig(Config):
    """The section ``shuffle``."""

    shards: int | None = Field(default=None, gt=0, lt=100_000)
    """Number of output files; by default as many as ``shard_size`` asks for."""
    shard_size: str = "256MB"
    """About how much text one output file holds, such as 256MB; used when ``shards`` is not set."""
    memory: str | None = None
    """Memory of all processes of a machine together, such as 2GB; by default half of what is free."""
    spill: str | None = None
    """Folder for intermediate files, on each machine's own disk; by default next to the output."""
    format: FormatChoice = "auto"
    """Format of the inputs; auto goes by the suffix."""
    document: Literal["line", "block", "file"] = "line"
    """What a document is in text files: a line, the lines up to a blank one, or the whole file."""
    text_key: str | tuple[str, ...] = "text"
    """Key or column of the text; dots go into objects, such as ``article.body``. Several are joined by newlines."""
    keep: tuple[str, ...] = ()
    """Other keys or columns to keep, as columns of text."""
    keep_all: bool = False
    """Keep all other keys or columns. Those of JSON are found in the first records of each input; a record that has yet
    another one cannot be used."""
    weights: Annotated[dict[str, float], OptionName("--weight")] = Field(default_factory=dict)
    """Input, written as among the inputs -> how often its documents are taken: 2 is twice, 0.5 every other one."""
    filters: Annotated[FilterConfig, OptionName(old_flag="--filter")] = Field(
        default_factory=FilterConfig, json_schema_extra=names_will_do
    )
    """Which documents are dropped for their length or quality."""
    keep_dropped: bool = False
    """Keep the documents that a filter or ``dedup: near`` drops, in ``dropped/``."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """A record that cannot be used ends the shuffle (fail), or is counted and kept aside in ``rejected/`` (skip)."""
    dedup: Literal["none", "exact", "near"] = "none"
    """``exact`` keeps the first of the documents whose texts are equal byte for byte; ``near`` also keeps the first of
    those that share most of their n-grams, directly or through others."""
    near: NearConfig = Field(default_factory=NearConfig)
    """Which documents are near-duplicates, with ``dedup: near``."""
    languages: bool = False
    """Guess the languages of the first documents, for the manifest and the report; needs the extra ``languages``."""
    output: Annotated[OutputChoice, OptionName("--to")] = "arrow"
    """Format of the output; the later stages read arrow. A file to write implies it by its suffix."""

    @property
    def text_keys(self) -> tuple[str, ...]:
        """``text_key`` as several."""
        return (self.text_key,) if isinstance(self.text_key, str) else self.text_key

    _check_size = field_validator("shard_size", "memory")(check_size)

    _names_a_key = field_validator("text_key")(check_text_key)

    @field_validator("keep")
    @classmethod
    def _has_no_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "text" in value or "" in value or len(set(value)) < len(value):
            raise ValueError("name other columns than 'text', each once; the text is always there, as column 'text'")
        return value

    @field_validator("weights")
    @classmethod
    def _are_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, weight in value.items():
            if not (0 < weight <= MAX_WEIGHT and math.isfinite(weight)):
                raise ValueError(f"the weight of '{pattern}' is {weight}; allowed: above 0, at most {MAX_WEIGHT}")
        return value

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> Self:
        if self.shards:
            refuse_without_effect(self, "shard_size", because=f"beside shards={self.shards}")
        if self.format not in ("auto", "text"):
            refuse_without_effect(self, "document", because=f"with format={self.format}: it is about text files")
        if self.format == "text":
            refuse_without_effect(self, "text_key", because="with format=text, which has no keys")
        if self.dedup != "near":
            because = f"with dedup={self.dedup}: it is about dedup: near"
            refuse_without_effect(self.near, *type(self.near).model_fields, because=because)
        if self.output == "csv":
            refuse_without_effect(self, "languages", because="with output=csv, which is not read again")
        if not self.filters.is_active and self.dedup != "near":
            refuse_without_effect(self, "keep_dropped", because="without a filter or dedup: near")
        return self

    @model_validator(mode="after")
    def _weights_fit_dedup(self) -> Self:
        if self.dedup != "none" and any(weight != math.floor(weight) for weight in self.weights.values()):
            raise ValueError(
                f"with dedup: {self.dedup}, weights must be whole numbers; shuffle once for each of the two"
            )
        if self.keep and self.keep_all:
            raise ValueError("'keep_all' keeps every key; remove it, or remove 'keep'")
        if self.output == "lines" and (self.keep or self.keep_all):
            raise ValueError(
                f"plain lines hold the text alone; remove '{'keep' if self.keep else 'keep_all'}', or write jsonl, "
                "parquet or arrow"
            )
        return self


def check_fits_sources(config: ShuffleConfig, sources: Sequence[NamedSource]) -> None:
    """Refuse settings that have no effect, or no meaning, beside the sources of a mixture.

    Raises:
        ValueError: Names one.
    """
    if config.weights:
        raise ValueError("shuffle.weights is given beside corpus.sources, which have weights of their own; remove it")
    if SOURCE_COLUMN in config.keep:
        raise ValueError(
            f"shuffle.keep names '{SOURCE_COLUMN}', and with corpus.sources that column holds the name of the source; "
            "leave it out of keep, or give that key another name in the inputs"
        )
    if config.output == "lines":
        raise ValueError("plain lines cannot say of which source a document is; write jsonl, parquet or arrow")
    for name in ("filters", "format", "document", "text_key"):
        default = ShuffleConfig.model_fields[name].get_default(call_default_factory=True)
        if getattr(config, name) != default and all(getattr(named, name) is not None for named in sources):
            raise ValueError(
                f"shuffle.{name} has no effect: every source in corpus.sources has '{name}' of its own; remove it"
            )


class ShufConfig(Config):
    """What a shuffle into one file can do besides, as the program ``shuf`` does."""

    head_count: Annotated[int | None, OptionName(short_flag="-n")] = Field(default=None, ge=0)
    """One file only: no more than so many rows, the first ones of the order, which are a uniform sample."""
    repeat: Annotated[bool, OptionName(short_flag="-r")] = False
    """Lines to lines: draw ``head_count`` lines with replacement, each time any line of the input."""
    zero_terminated: Annotated[bool, OptionName(short_flag="-z")] = False
    """Lines to lines: a line ends with a NUL byte, not with a newline."""
    header: int = Field(default=0, ge=0)
    """Lines to lines: so many first lines stay first. Those of several inputs must be equal and are written once."""

    input_range: Annotated[str | None, OptionName(short_flag="-i")] = None
    """One file only: instead of inputs the whole numbers of a range LO-HI, such as 1-100."""

    @property
    def line_end(self) -> bytes:
        """The byte that ends a line."""
        return b"\0" if self.zero_terminated else b"\n"

    @property
    def options_for_lines(self) -> list[str]:
        """The options given that only lines have a use for."""
        given = {"--repeat": self.repeat, "--zero-terminated": self.zero_terminated, "--header": self.header}
        return [option for option, value in given.items() if value]

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.repeat and not (self.head_count is not None and self.head_count < _MAX_DRAWS):
            raise ValueError(
                "--repeat draws lines without end; say how many with --head-count, below 2 to the power of 32"
            )
        return self
