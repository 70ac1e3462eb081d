"""How the corpus is shuffled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from kexue_train.config import Config
from kexue_train.errors import ConfigError
from kexue_train.runtime import parse_size


class ShuffleConfig(Config):
    """The section ``shuffle``."""

    shards: int | None = Field(default=None, gt=0, lt=100_000)
    """Number of output files; null: as many as ``shard_size`` asks for."""
    shard_size: str = "256MB"
    """About how much text one output file holds, such as 256MB; used when ``shards`` is null."""
    memory: str | None = None
    """About how much memory all workers together may use, such as 2GB; null: half of what is free."""
    format: Literal["auto", "text", "jsonl", "parquet", "arrow"] = "auto"
    """Format of the inputs; auto goes by the suffix. In text files a line is a document."""
    text_key: str = Field(default="text", min_length=1)
    """Key or column that holds the text; dots go into objects, such as ``article.body``."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """A record that cannot be used ends the shuffle (fail), or is counted and kept aside in ``rejected/`` (skip)."""
    dedup: Literal["none", "exact"] = "none"
    """``exact`` keeps one of the documents whose texts are equal byte for byte."""

    @field_validator("shard_size", "memory")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        try:
            parse_size(value or "1B")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value
