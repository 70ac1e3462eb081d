"""Training of a WordPiece vocabulary; a pure function of the text.

The trainer of ``tokenizers`` numbers pieces in hash order, so everything it would number that way (characters, "##"
characters) is counted and handed to it here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.runtime import format_size
from kexue_train.samples.bert_tokenizer import PREFIX, SPECIAL_TOKENS, assemble
from kexue_train.samples.shard_texts import iter_text_blocks
from kexue_train.samples.words import code_points

_NUM_CODE_POINTS = 0x110000
_COVERAGE = 0.9998  # of the characters of the text; rarer ones become [UNK]
_BLOCK_BYTES = 1 << 16  # the trainer holds 256 blocks at once


@dataclass(frozen=True)
class Alphabet:
    """Characters of a vocabulary, and those among them that also continue a word; both in order of code points."""

    characters: list[str]
    continuing: list[str]

    @property
    def num_pieces(self) -> int:
        """How many pieces they take."""
        return len(self.characters) + len(self.continuing)


@dataclass(frozen=True)
class CharacterCounts:
    """Occurrences by code point: (0x110000,) int64 each.

    Attributes:
        total: Occurrences of each character, white space left out.
        continuing: Occurrences of each character inside a word, not at its start.
    """

    total: npt.NDArray[np.int64]
    continuing: npt.NDArray[np.int64]

    def choose(self, *, max_pieces: int, min_frequency: int) -> Alphabet:
        """Return the most frequent characters that cover 99.98 % of the text, within ``max_pieces`` and frequency."""
        found = np.flatnonzero(self.total)
        ranked = found[np.lexsort((found, -self.total[found]))]
        counts = self.total[ranked]
        covering = int(np.searchsorted(np.cumsum(counts), _COVERAGE * counts.sum())) + 1
        pieces = np.cumsum(1 + (self.continuing[ranked] > 0))
        affordable = int(np.searchsorted(pieces, max_pieces, side="right"))
        frequent = int(np.count_nonzero(counts >= min_frequency))
        chosen = np.sort(ranked[: min(covering, affordable, frequent)])
        return Alphabet(
            [chr(point) for point in chosen], [chr(point) for point in chosen if self.continuing[point] > 0]
        )


def count_characters(blocks: Iterable[str]) -> CharacterCounts:
    """Count the characters of normalized text (lower-cased, Chinese characters between spaces, if so wished)."""
    total, continuing = np.zeros(_NUM_CODE_POINTS, np.int64), np.zeros(_NUM_CODE_POINTS, np.int64)
    space, border = _borders()
    for block in blocks:
        points = code_points(block)
        between = border[points]
        total += np.bincount(points[~space[points]], minlength=_NUM_CODE_POINTS)
        inside = ~between[1:] & ~between[:-1]
        continuing += np.bincount(points[1:][inside], minlength=_NUM_CODE_POINTS)
    return CharacterCounts(total, continuing)


@cache
def _borders() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return for each code point whether it is white space, and whether it ends a word as in BERT."""
    space, border = np.zeros(_NUM_CODE_POINTS, np.bool_), np.zeros(_NUM_CODE_POINTS, np.bool_)
    for point in range(_NUM_CODE_POINTS):
        character = chr(point)
        space[point] = character.isspace()
        border[point] = (
            space[point] or unicodedata.category(character).startswith("P") or (point < 128 and not character.isalnum())
        )
    return space, border


def train_wordpiece(
    shards: Path, num_bytes: int, *, vocab_size: int, min_frequency: int, lowercase: bool, progress: Progress
) -> Tokenizer:
    """Train on the first ``num_bytes`` of text in ``shards``; memory grows with its distinct words only.

    Raises:
        ConfigError: If the text yields fewer than ``vocab_size`` pieces.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts = count_characters(normalizer.normalize_str(block) for block in iter_text_blocks(shards, num_bytes))
    room = vocab_size - len(SPECIAL_TOKENS)

    def train(max_characters: int) -> tuple[Alphabet, list[str]]:
        alphabet = counts.choose(max_pieces=max_characters, min_frequency=min_frequency)
        trainer = _trainer(alphabet, vocab_size=vocab_size, min_frequency=min_frequency)
        scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        scratch.normalizer, scratch.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
        scratch.train_from_iterator(_blocks(shards, num_bytes, progress), trainer)
        return alphabet, sorted(vocab := scratch.get_vocab(), key=vocab.__getitem__)

    # Three quarters at most: the rest is for pieces of several characters. Chinese text may have too few of those.
    alphabet, pieces = train(room * 3 // 4)
    if len(pieces) < vocab_size:
        more, more_pieces = train(alphabet.num_pieces + vocab_size - len(pieces))
        pieces = more_pieces if more.num_pieces > alphabet.num_pieces else pieces
    if len(pieces) < vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size}: {format_size(num_bytes)} of text in {shards} yield only "
            f"{len(pieces)} pieces that occur at least tokenizer.min_frequency={min_frequency} times; set "
            f"tokenizer.vocab_size={len(pieces)} or less, or use a larger corpus"
        )
    return assemble({piece: number for number, piece in enumerate(pieces)}, normalizer)


def _trainer(alphabet: Alphabet, *, vocab_size: int, min_frequency: int) -> trainers.WordPieceTrainer:
    continuations = [PREFIX + character for character in alphabet.continuing]
    return trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS.values(), *continuations],
        initial_alphabet=alphabet.characters,
        limit_alphabet=len(alphabet.characters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )


def _blocks(shards: Path, num_bytes: int, progress: Progress) -> Iterator[str]:
    done = 0
    for block in iter_text_blocks(shards, num_bytes, block_bytes=_BLOCK_BYTES):
        yield block
        done += len(block.encode())
        progress.update(min(done, num_bytes), num_bytes, "bytes")
