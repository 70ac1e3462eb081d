"""How much of a text a vocabulary covers, by token and by character: one [UNK] may stand for two hundred characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from kexue_train.corpus.scripts import script_of
from kexue_train.samples.bert_tokenizer import PREFIX
from kexue_train.samples.words import BertWords

_SHOWN = 10
_SHOWN_CHARS = 30


@dataclass
class Coverage:
    """Counts over a text; characters are those of its words, so without white space."""

    max_word_chars: int
    """A longer word is [UNK], whatever the vocabulary."""
    bytes: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    characters: int = 0
    unknown_characters: int = 0
    """Characters of the words that are [UNK]."""
    missing_pieces: Counter[str] = field(default_factory=Counter)
    """Characters without a piece, by the words that became [UNK] because of them; inside a word they begin with ##."""
    long_scripts: Counter[str] = field(default_factory=Counter)
    """Characters of the words that are too long, by script."""
    longest_word: str = ""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token."""
        return self.bytes / max(1, self.tokens)

    @property
    def unknown_rate(self) -> float:
        """Share of tokens that are [UNK]."""
        return self.unknown_tokens / max(1, self.tokens)

    @property
    def unknown_character_rate(self) -> float:
        """Share of characters that are in words that are [UNK]."""
        return self.unknown_characters / max(1, self.characters)

    def describe_rates(self) -> str:
        """Return both rates."""
        return f"{self.unknown_rate:.1%} of the tokens and {self.unknown_character_rate:.1%} of the characters"

    def describe_causes(self) -> str:
        """Return which characters are lost, with their code points, and in which words."""
        causes = []
        if self.missing_pieces:
            causes.append(f"characters without a piece: {', '.join(map(self._piece, _first(self.missing_pieces)))}")
        if self.long_scripts:
            scripts = ", ".join(f"{script} ({self.long_scripts[script]:,})" for script in _first(self.long_scripts))
            causes.append(
                f"characters in words of more than {self.max_word_chars} characters, which become one [UNK] each: "
                f"{scripts}, such as {self.longest_word[:_SHOWN_CHARS]!r}…"
            )
        return "; ".join(causes)

    def _piece(self, piece: str) -> str:
        character = piece[-1]
        shown = piece if character.isprintable() else piece[:-1] + "?"
        return f"{shown} (U+{ord(character):04X}, {self.missing_pieces[piece]} times)"


def measure_coverage(tokenizer: Tokenizer, texts: Iterable[str]) -> Coverage:
    """Tokenize ``texts`` and count."""
    cutter, found, words = BertWords(tokenizer), Coverage(tokenizer.model.max_input_chars_per_word), Counter[str]()
    for text in texts:
        found.bytes += len(text.encode())
        words.update(cutter.split(text))
    vocab, unknown_id = tokenizer.get_vocab(), tokenizer.token_to_id("[UNK]")
    for word, count in words.items():
        ids, *_ = cutter.pieces([word])
        found.tokens += count * len(ids)
        found.characters += count * len(word)
        if unknown_id in ids:  # a word has either known pieces or is one [UNK]
            found.unknown_tokens += count
            found.unknown_characters += count * len(word)
            if len(word) > found.max_word_chars:
                found.long_scripts.update({script: count * n for script, n in Counter(map(script_of, word)).items()})
                found.longest_word = max(found.longest_word, word, key=len)
            else:
                pieces = {c if index == 0 else PREFIX + c for index, c in enumerate(word)}
                found.missing_pieces.update({piece: count for piece in pieces if piece not in vocab})
    return found


def _first(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:_SHOWN]
