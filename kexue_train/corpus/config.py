"""What the corpus is made of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from kexue_train.config import Config
from kexue_train.errors import ConfigError
from kexue_train.runtime import parse_size


class CorpusConfig(Config):
    """The section ``corpus``."""

    source: Literal["installed_docs", "files"] = "files"
    """``files``: the files named in ``inputs``; ``installed_docs``: the documentation installed on this machine."""
    inputs: tuple[str, ...] = ()
    """Files, folders or globs of .txt, .jsonl, .ndjson, .parquet or .arrow (text also .gz, .zst, .bz2, .xz, .lz4)."""
    max_size: str = "16MB"
    """With ``installed_docs``: about how much text to take, such as 16MB."""

    @field_validator("max_size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        try:
            parse_size(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _inputs_fit_source(self) -> Self:
        if self.source == "installed_docs" and self.inputs:
            raise ValueError("'inputs' is given though source is installed_docs: remove it, or set source: files")
        return self
