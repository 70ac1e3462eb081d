"""Settings of the tokenizer and sample stages."""

from __future__ import annotations

from pydantic import Field, field_validator

from kexue_train.config import Config
from kexue_train.errors import ConfigError
from kexue_train.runtime import parse_size


class TokenizerConfig(Config):
    """How the WordPiece vocabulary is trained."""

    vocab_size: int = Field(default=8192, ge=64, le=1_000_000)
    """Pieces in the vocabulary, the five special tokens included."""
    lowercase: bool = True
    """Lower-case the text and strip accents."""
    min_frequency: int = Field(default=2, ge=1)
    """A piece must occur at least this often in the training text."""
    max_size: str = "1GB"
    """Train on at most this much text: the first rows of the shards, a uniform sample of the corpus."""

    @field_validator("max_size")
    @classmethod
    def _readable_size(cls, value: str) -> str:
        try:
            parse_size(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value


class SampleConfig(Config):
    """How documents become rows of exactly ``seq_len`` token slots."""

    seq_len: int = Field(default=512, ge=16, le=32_768)
    """Token slots of a row; no sequence is longer."""
    nsp: bool = True
    """Make pairs ``[CLS] A [SEP] B [SEP]``, half of them with B from another document; off: ``[CLS] A [SEP]``."""
    whole_word: bool = True
    """Mask whole words (English: WordPiece continuation; Chinese: segmented words); off: every piece alone."""
    short_sequence_probability: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of pairs that are deliberately shorter than a row, so that the model also meets short inputs."""
    heldout_fraction: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Share of the documents kept out of training for validation (at least a handful)."""
