"""What the corpus is made of, and which of its documents are dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from kexue_train.corpus.formats import allowed_suffixes
from kexue_train.foundation.config import Config, OptionName, refuse_without_effect
from kexue_train.foundation.runtime import check_size


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
    max_size: str = "16MB"
    """With ``installed_docs``: about how much text to take, such as 16MB."""

    _check_size = field_validator("max_size")(check_size)

    @model_validator(mode="after")
    def _inputs_fit_source(self) -> Self:
        if self.source == "installed_docs" and self.inputs:
            raise ValueError("'inputs' is given though source is installed_docs: remove it, or set source: files")
        if self.source == "files":
            refuse_without_effect(self, "max_size", because="with source: files, which are read whole")
        return self


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
