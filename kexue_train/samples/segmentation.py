"""Which segmenter finds the Chinese words, and the word list it reads, which travels with the samples.

A word list has jieba's form: UTF-8, per line ``word [frequency] [tag]``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import rjieba

from kexue_train.foundation.artifacts import aside_name, file_checksum, write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.phrases import find_phrases
from kexue_train.samples.shard_texts import iter_text_blocks
from kexue_train.samples.words import Segment

WORDS_NAME = "words.txt"
_PHRASE_BYTES = 30_000_000  # of text that phrases are looked for in


class Entry(NamedTuple):
    """One word."""

    word: str
    frequency: int | None = None
    """None: as high as needed for jieba to find the word."""
    tag: str | None = None


def read_dictionary(path: Path) -> list[Entry]:
    """Read a word list; blank lines are left out.

    Raises:
        ArtifactError: Names the file and the line that is not of the form above.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ArtifactError(f"{path}: the dictionary cannot be read ({error.strerror}); check the path") from None
    return [entry for number, line in enumerate(lines, 1) for entry in _parse(line, f"{path}:{number}")]


def write_dictionary(path: Path, frequencies: Mapping[str, int]) -> None:
    """Write words with their frequencies, the most frequent first."""
    ranked = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))
    write_atomic(path, "".join(f"{word} {frequency}\n" for word, frequency in ranked))


def _parse(line: bytes, where: str) -> Iterator[Entry]:
    try:
        fields = line.decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8 ({error.reason}); convert the dictionary to UTF-8") from None
    if not fields:
        return
    word, *rest = fields
    frequency = int(rest.pop(0)) if rest and rest[0].isdecimal() else None
    tag = rest.pop(0) if rest and rest[0].isalpha() else None
    if rest:
        raise ArtifactError(
            f"{where}: {' '.join(fields)!r} is not of the form 'word [frequency] [tag]', such as '图书馆 120 n'; "
            "the frequency is a whole number, the tag is letters"
        )
    yield Entry(word, frequency, tag)


def word_settings(config: SampleConfig) -> dict[str, Any]:
    """Return the settings as they determine the samples: of a dictionary its contents, not where they lie.

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
    """Return a function that cuts Chinese text into words, with the word list that ``prepare_words`` wrote."""
    if words is None:
        return rjieba.cut
    # With nothing but our words and without its model of unknown ones, jieba finds the cover with the largest sum of
    # ln p, p being a word's share of all frequencies.
    is_lexicon = config.words == "pmi"
    jieba = rjieba.Jieba.empty() if is_lexicon else rjieba.Jieba()  # type: ignore[no-untyped-call]  # its stub lacks it
    for entry in read_dictionary(words):
        jieba.add_word(*entry)
    return partial(jieba.cut, hmm=not is_lexicon)
