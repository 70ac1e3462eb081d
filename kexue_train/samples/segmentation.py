"""Which segmenter finds the Chinese words, and the word list it reads, which travels with the samples."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import rjieba

from kexue_train.foundation.artifacts import aside_name, file_checksum
from kexue_train.foundation.errors import ConfigError
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.dictionary import read_dictionary, write_dictionary
from kexue_train.samples.phrases import find_phrases
from kexue_train.samples.text_blocks import iter_text_blocks
from kexue_train.samples.words import Segment

WORDS_NAME = "words.txt"
_PHRASE_BYTES = 30_000_000  # of text that phrases are looked for in


def word_settings(config: SampleConfig) -> dict[str, Any]:
    """The settings as they determine the samples: of a dictionary its contents, not where they lie.

    Raises:
        ConfigError: If there is no such dictionary.
    """
    path = config.dictionary
    if path and not path.is_file():
        raise ConfigError(f"samples.dictionary={path}: no such file; give a list of words, or leave it out")
    return {**config.model_dump(mode="json"), "dictionary": file_checksum(path) if path else None}


def prepare_words(config: SampleConfig, shards: Path, folder: Path) -> Path | None:
    """Write the word list of ``config`` into ``folder``, unless it is there: the dictionary, or phrases of the corpus.

    Returns:
        Its path, for ``segmenter`` in every task; None if none is needed.

    Raises:
        ArtifactError: If the dictionary is not of jieba's form; names the line.
    """
    path = folder / WORDS_NAME
    if config.words == "jieba" and not config.dictionary:
        return None
    if path.exists():
        return path
    if config.dictionary:
        read_dictionary(config.dictionary)  # refused before any task starts
        shutil.copyfile(config.dictionary, aside := aside_name(path))
        aside.rename(path)
    else:
        write_dictionary(path, find_phrases(lambda: iter_text_blocks(shards, _PHRASE_BYTES)))
    return path


def segmenter(config: SampleConfig, words: Path | None) -> Segment:
    """Cuts Chinese text into words, with the word list that ``prepare_words`` wrote."""
    if words is None:
        return rjieba.cut
    # With nothing but our words and without its model of unknown ones, jieba finds the cover with the largest sum of
    # ln p, p being a word's share of all frequencies.
    is_lexicon = config.words == "pmi"
    jieba = rjieba.Jieba.empty() if is_lexicon else rjieba.Jieba()  # type: ignore[no-untyped-call]  # its stub lacks it
    for entry in read_dictionary(words):
        jieba.add_word(*entry)
    return partial(jieba.cut, hmm=not is_lexicon)
