"""How well a vocabulary covers a text: bytes per token, and what it does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

from kexue_train.samples.bert_tokenizer import PREFIX
from kexue_train.samples.bert_words import BertWords

_SHOWN = 10


@dataclass(frozen=True)
class Coverage:
    """Counts over a text."""

    bytes: int
    tokens: int
    unknown_tokens: int
    unknown_characters: Counter[str]
    """Characters without a piece, by the words that became [UNK] because of them."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token."""
        return self.bytes / max(1, self.tokens)

    @property
    def unknown_rate(self) -> float:
        """Share of tokens that are [UNK]."""
        return self.unknown_tokens / max(1, self.tokens)

    def describe_unknown(self) -> str:
        """The most frequent unknown characters, with their code points."""
        ranked = sorted(self.unknown_characters.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
        shown = [f"{c if c.isprintable() else '?'} (U+{ord(c):04X}, {count} times)" for c, count in ranked]
        return ", ".join(shown) or "none; the words are too long"


def measure_coverage(tokenizer: Tokenizer, texts: Iterable[str]) -> Coverage:
    """Tokenize ``texts`` and count."""
    cutter = BertWords(tokenizer)
    num_bytes, words = 0, Counter[str]()
    for text in texts:
        num_bytes += len(text.encode())
        words.update(cutter.split(text))
    vocab, unknown_id = tokenizer.get_vocab(), tokenizer.token_to_id("[UNK]")
    tokens, unknown_tokens, characters = 0, 0, Counter[str]()
    for word, count in words.items():
        ids, *_ = cutter.pieces([word])
        tokens += count * len(ids)
        if unknown_id in ids:
            unknown_tokens += count
            # A word has either known pieces or is one [UNK].
            pieces = {c if place == 0 else PREFIX + c for place, c in enumerate(word)}
            characters.update({piece[-1]: count for piece in pieces if piece not in vocab})
    return Coverage(num_bytes, tokens, unknown_tokens, characters)
