"""Settings of the tokenizer and sample stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kexue_train.foundation.config import Config, OptionName, refuse_without_effect
from kexue_train.foundation.runtime import check_size


class TokenizerConfig(Config):
    """The WordPiece vocabulary: how it is trained, or which existing one is taken."""

    source: Annotated[Path | None, OptionName("--from")] = None
    """A vocab.txt, a tokenizer.json, or a folder that holds one: taken as it is. Without it, one is trained."""
    vocab_size: int = Field(default=8192, ge=64, le=1_000_000)
    """Pieces in a trained vocabulary, the five special tokens included."""
    lowercase: bool = True
    """Lower-case the text and strip accents; a tokenizer.json says itself whether it does."""
    min_frequency: int = Field(default=2, ge=1)
    """A piece must occur at least this often in the training text."""
    max_size: Annotated[str, OptionName(old_flag="--max-bytes")] = "1GB"
    """Train on at most this much text: the first rows of the shards, a uniform sample of the corpus."""
    max_unknown_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """Refuse a vocabulary that makes more than this share of the tokens, or of the characters, of a sample of the
    corpus [UNK]."""

    _check_size = field_validator("max_size")(check_size)

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> Self:
        if self.source:
            refuse_without_effect(self, "min_frequency", "max_size", because="beside source: nothing is trained")
        return self


class SampleConfig(Config):
    """How documents become rows of exactly ``seq_len`` token slots."""

    seq_len: int = Field(default=512, ge=16, le=32_768)
    """Token slots of a row; no sequence is longer."""
    nsp: bool = True
    """Make pairs ``[CLS] A [SEP] B [SEP]``, half of them with B from another document; off: ``[CLS] A [SEP]``."""
    whole_word: bool = True
    """Mask whole words (English: WordPiece continuation; Chinese: segmented words); off: every piece alone."""
    words: Literal["jieba", "pmi"] = "jieba"
    """Chinese words: those of jieba, or phrases found in the corpus itself by how much their characters attract."""
    dictionary: Path | None = None
    """More words for jieba: lines of UTF-8, ``word [frequency] [tag]``."""
    short_sequence_probability: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of pairs that are deliberately shorter than a row, so that the model also meets short inputs."""
    shuffle: Literal["shard", "global"] = "shard"
    """Where the rows made of a shard go: to that shard, in random order; or mixed with those of all shards."""
    heldout_fraction: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Share of the documents kept out of training for validation (at least a handful)."""

    @model_validator(mode="after")
    def _words_are_used(self) -> Self:
        if not self.nsp:
            refuse_without_effect(self, "short_sequence_probability", because="with nsp=false: it is about pairs")
        if self.dictionary and self.words != "jieba":
            raise ValueError(f"dictionary={self.dictionary} adds words to jieba, but words={self.words}; drop one")
        if not self.whole_word and (self.dictionary or self.words != "jieba"):
            raise ValueError("whole_word=false masks every piece alone, so words and dictionary do nothing; drop them")
        return self
