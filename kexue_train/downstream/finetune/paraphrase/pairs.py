"""Pairs of sentences that mean the same: JSON Lines -> tokens, with what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.downstream.sequences import Ids, encode
from kexue_train.downstream.settings import ParaphraseSettings
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError

_SIDES = ("text_a", "text_b")
Pair = tuple[Ids, Ids]


@dataclass(frozen=True)
class Pairs:
    """The usable pairs of a split."""

    sides: list[Pair]
    """Tokens of both sentences, without special ones."""
    left_out: Counter[str]
    """Reason -> pairs."""

    @classmethod
    def read(cls, records: Sequence[Record], tokenizer: Any, max_length: int) -> Pairs:
        """Tokenize the pairs, and leave out those that are too long or have two equal sides.

        Raises:
            EvaluationError: If a side is missing, empty, or no text, or if no pair is left; says which line.
        """
        firsts, seconds = (encode(tokenizer, [_side(record, name) for record in records]) for name in _SIDES)
        sides: list[Pair] = []
        left_out: Counter[str] = Counter()
        for record, first, second in zip(records, firsts, seconds, strict=True):
            for name, ids in zip(_SIDES, (first, second), strict=True):
                if not len(ids):
                    raise EvaluationError(
                        f"{record.where}: '{name}' has no token; give a sentence, or leave the pair out"
                    )
            if max(len(first), len(second)) + 2 > max_length:
                left_out[f"longer than {max_length} tokens"] += 1
            elif np.array_equal(first, second):
                left_out["two equal sides"] += 1
            else:
                sides.append((first, second))
        if not sides:
            raise EvaluationError(f"{records[0].where}: no pair of the {len(records)} is left ({in_words(left_out)})")
        return cls(sides, left_out)


def in_words(left_out: Counter[str] | dict[str, int]) -> str:
    """Return the reasons with their numbers."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def read_pair_splits(data: Path, dev: Path | None, settings: ParaphraseSettings) -> Splits:
    """Return the records of ``data`` to learn from and to score, the latter from ``dev`` or a tenth of ``data``.

    Pairs with the same first sentence are held out together.

    Raises:
        EvaluationError: If a file is missing, damaged or empty, or too short to hold something out.
    """
    paths = {"train": str(data.absolute())} | ({} if dev is None else {"dev": str(dev.absolute())})
    files = SupervisedTask.parse({"title": "paraphrases", "kind": "paraphrase"} | paths, where=str(data))
    return read_splits(
        files,
        Path(),
        lambda record: _side(record, _SIDES[0]),
        max_train=settings.max_train,
        max_eval=settings.max_eval,
    )


def _side(record: Record, name: str) -> str:
    text = record.value(name)
    if not isinstance(text, str) or not text.strip():
        raise EvaluationError(f"{record.where}: '{name}' is {text!r}; expected a sentence")
    return text
