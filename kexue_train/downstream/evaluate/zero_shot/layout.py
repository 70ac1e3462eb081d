"""A text and a prompt -> one token sequence, no longer than the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue_train.downstream.evaluate.sequences import Ids, encode
from kexue_train.downstream.evaluate.zero_shot.records import Text


class EncodedText(NamedTuple):
    """The tokens of a ``Text``."""

    before: Ids
    middle: Ids
    after: Ids
    has_blank: bool

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.before) + len(self.middle) + len(self.after)

    def cut(self, room: int) -> EncodedText:
        """At most ``room`` tokens.

        The longest value loses its end (what the template says around it stays). With a blank both sides lose their
        outer ends, the longer one first.
        """
        excess = self.size - room
        if excess <= 0:
            return self
        if self.has_blank:
            shorter = min(len(self.before), len(self.after), room // 2)
            kept_before = shorter if len(self.before) <= len(self.after) else room - shorter
            before = self.before[len(self.before) - kept_before :]
            return EncodedText(before, self.middle, self.after[: room - kept_before], True)
        middle = self.middle[: max(0, len(self.middle) - excess)]
        before = self.before[:room]
        return EncodedText(before, middle, self.after[: room - len(before) - len(middle)], False)


def encode_texts(tokenizer: Any, texts: Sequence[Text], *, has_blank: bool) -> list[EncodedText]:
    """The pieces of every text; a piece begins and ends a word."""
    before, middle, after = (encode(tokenizer, pieces) for pieces in zip(*texts, strict=True))
    return [EncodedText(*pieces, has_blank) for pieces in zip(before, middle, after, strict=True)]


@dataclass(frozen=True)
class Layout:
    """How a text and a prompt become one sequence."""

    cls: int
    sep: int
    order: Literal["prefix", "suffix"]
    max_length: int

    @property
    def room(self) -> int:
        """Tokens beside [CLS] and two [SEP]."""
        return self.max_length - 3

    def join(self, text: EncodedText, prompt: Ids) -> Pair:
        """``[CLS] prompt [SEP] text [SEP]``, or the text first; too long, the prompt keeps up to half of the room."""
        prompt = prompt[: max(self.room - text.size, self.room // 2)]
        text = text.cut(self.room - len(prompt))
        body = np.concatenate(text[:3])
        first, second = (prompt, body) if self.order == "prefix" else (body, prompt)
        ids = np.concatenate(([self.cls], first, [self.sep], second, [self.sep]))
        return Pair(ids, len(first) + 2, self._positions(text, len(prompt)) if text.has_blank else None)

    def _positions(self, text: EncodedText, prompt: int) -> Ids:
        """Of a sequence without prompt, but with room for it at the blank, where the prompt's tokens stand.

        Source: nsp_bert_cloze_style.py of github.com/sunyilgdx/NSP-BERT.
        """
        start = 2 if self.order == "prefix" else 1
        blank = start + len(text.before)
        before, at_blank = np.arange(start, blank), np.arange(blank, blank + prompt)
        after = np.arange(blank + prompt, blank + prompt + len(text.after))
        end = blank + prompt + len(text.after)
        if self.order == "prefix":
            return np.concatenate(([0], at_blank, [1], before, after, [end]))
        return np.concatenate(([0], before, after, [end], at_blank, [end + 1]))


class Pair(NamedTuple):
    """One sequence."""

    ids: Ids
    second_starts: int
    """Where the second segment begins."""
    positions: Ids | None
