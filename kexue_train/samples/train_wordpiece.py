"""Training of a WordPiece vocabulary; a pure function of the text.

The trainer of ``tokenizers`` numbers pieces in hash order, so everything it would number that way (characters, "##"
characters) is counted and handed to it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.runtime import format_size
from kexue_train.samples.alphabet import count_characters
from kexue_train.samples.bert_tokenizer import PREFIX, SPECIAL_TOKENS, assemble
from kexue_train.samples.text_blocks import iter_text_blocks

_BLOCK_BYTES = 1 << 16  # the trainer holds 256 blocks at once


def train_wordpiece(
    shards: Path, num_bytes: int, *, vocab_size: int, min_frequency: int, lowercase: bool, progress: Progress
) -> Tokenizer:
    """Train on the first ``num_bytes`` of text in ``shards``; memory grows with its distinct words only.

    Raises:
        ConfigError: If the text yields fewer than ``vocab_size`` pieces.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = count_characters(
        normalizer.normalize_str(block) for block in iter_text_blocks(shards, num_bytes)
    ).choose(
        # Three quarters at most: the rest is for pieces of several characters.
        max_pieces=(vocab_size - len(SPECIAL_TOKENS)) * 3 // 4,
        min_frequency=min_frequency,
    )
    continuations = [PREFIX + character for character in alphabet.continuing]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS.values(), *continuations],
        initial_alphabet=alphabet.characters,
        limit_alphabet=len(alphabet.characters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    scratch.train_from_iterator(_blocks(shards, num_bytes, progress), trainer)
    pieces = sorted(vocab := scratch.get_vocab(), key=vocab.__getitem__)
    if len(pieces) < vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size}: {format_size(num_bytes)} of text in {shards} yield only "
            f"{len(pieces)} pieces that occur at least tokenizer.min_frequency={min_frequency} times; set "
            f"tokenizer.vocab_size={len(pieces)} or less, or use a larger corpus"
        )
    return assemble({piece: number for number, piece in enumerate(pieces)}, normalizer)


def _blocks(shards: Path, num_bytes: int, progress: Progress) -> Iterator[str]:
    done = 0
    for block in iter_text_blocks(shards, num_bytes, block_bytes=_BLOCK_BYTES):
        yield block
        done += len(block.encode())
        progress.update(min(done, num_bytes), num_bytes, "bytes")
