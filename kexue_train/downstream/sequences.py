"""Texts -> token sequences of any lengths -> padded batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kexue_train.foundation.errors import EvaluationError

Ids = npt.NDArray[np.int64]


def tokens_at_once(device: Any) -> int:
    """Return how many slots are scored at once: many fill a GPU; a CPU is a quarter faster if states fit its cache."""
    return 1 << 11 if device.type == "cpu" else 1 << 14


def encode(tokenizer: Any, strings: Sequence[str]) -> list[Ids]:
    """Return the tokens of every string, without special ones."""
    if not strings:
        return []
    encoded = tokenizer(
        list(strings),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no advice on long texts: who cuts them counts them
    )
    return [np.array(ids, np.int64) for ids in encoded["input_ids"]]


def batches(lengths: Ids, tokens_per_batch: int) -> Iterator[Ids]:
    """Yield indices into ``lengths`` (n,), the longest first, as many at once as fit ``tokens_per_batch`` with padding.

    Similar lengths together leave little padding; the longest first, too little memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def padded(sequences: Sequence[Ids], fill: int) -> Ids:
    """Return the sequences as (B, S), with ``fill`` after the end of each."""
    rows = np.full((len(sequences), max(map(len, sequences))), fill, np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows


def share_room(first: int, second: int, room: int) -> int:
    """Return how many tokens the first of two texts keeps when both have to fit ``room``: the longer one is cut first.

    Args:
        first: Tokens of the first.
        second: Tokens of the second; with the first more than ``room``.
        room: Tokens of both together; the second keeps the rest of it.
    """
    shorter = min(first, second, room // 2)
    return shorter if first <= second else room - shorter


class Segments(NamedTuple):
    """One token sequence of one or two segments, with special tokens."""

    ids: Ids
    second_starts: int
    """Where the second segment begins; the length if there is no second segment."""


class Spelled(NamedTuple):
    """A text in tokens, without special ones."""

    ids: Ids
    spans: npt.NDArray[np.int64]
    """(n, 2) first character and the one after the last, of each token."""


@dataclass
class Reader:
    """Makes the sequences of one model, and counts what was lost on the way."""

    tokenizer: Any
    max_length: int
    one_segment: bool = False
    """All token types 0, as in the fine-tuning of RoFormerV2, whose second segment was never trained."""
    num_cut: int = field(default=0, init=False)
    """Sequences that lost tokens."""
    num_tokens: int = field(default=0, init=False)
    num_unknown: int = field(default=0, init=False)

    @property
    def unknown_rate(self) -> float:
        """Share of unknown tokens in all that was spelled."""
        return self.num_unknown / max(1, self.num_tokens)

    def spell(self, texts: Sequence[str]) -> list[Spelled]:
        """Return the tokens of every text and where they stand in it."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=self.tokenizer.is_fast, verbose=False
        )
        ids = [np.array(row, np.int64) for row in encoded["input_ids"]]
        self.num_tokens += sum(map(len, ids))
        self.num_unknown += sum(int((row == self.tokenizer.unk_token_id).sum()) for row in ids)
        spans = encoded["offset_mapping"] if self.tokenizer.is_fast else [[(0, 0)] * len(row) for row in ids]
        return [Spelled(row, np.array(span, np.int64).reshape(-1, 2)) for row, span in zip(ids, spans, strict=True)]

    def require_offsets(self) -> None:
        """Check that tokens can be found again in their text.

        Raises:
            EvaluationError: If this kind of tokenizer cannot tell.
        """
        if not self.tokenizer.is_fast:
            raise EvaluationError(
                f"{type(self.tokenizer).__name__} does not tell where its tokens stand in a text, which spans need; "
                "save the tokenizer with a tokenizer.json"
            )

    def join(self, first: Ids, second: Ids | None = None, *, keep_second: bool = False) -> Segments:
        """Return ``[CLS] first [SEP]`` or ``[CLS] first [SEP] second [SEP]``; the longer text loses its end.

        Args:
            first: Tokens.
            second: Tokens, if there are two texts.
            keep_second: Only ``first`` loses tokens, as long as it has any.
        """
        room = self.max_length - (2 if second is None else 3)
        size = len(first) + (0 if second is None else len(second))
        self.num_cut += size > room
        if second is None:
            ids = np.concatenate(([self.tokenizer.cls_token_id], first[:room], [self.tokenizer.sep_token_id]))
            return Segments(ids, len(ids))
        if keep_second:
            second = second[:room]
            first = first[: room - len(second)]
        elif size > room:
            kept = share_room(len(first), len(second), room)
            first, second = first[:kept], second[: room - kept]
        sep = [self.tokenizer.sep_token_id]
        ids = np.concatenate(([self.tokenizer.cls_token_id], first, sep, second, sep))
        return Segments(ids, len(first) + 2)

    def batch(self, sequences: Sequence[Segments], device: torch.device) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``token_type_ids``, each [B, S]."""
        ids = padded([sequence.ids for sequence in sequences], self.tokenizer.pad_token_id or 0)  # never attended to
        slots = np.arange(ids.shape[1])
        lengths = np.array([len(sequence.ids) for sequence in sequences])[:, None]
        starts = np.array([sequence.second_starts for sequence in sequences])[:, None]
        types = (slots >= starts) & (slots < lengths) & (not self.one_segment)
        arrays = {"input_ids": ids, "attention_mask": slots < lengths, "token_type_ids": types}
        return {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()}

    def in_batches(
        self, sequences: Sequence[Segments], device: torch.device
    ) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor]]]:
        """Yield all sequences in batches of similar lengths: their indices, and the tensors."""
        lengths = np.array([len(sequence.ids) for sequence in sequences], np.int64)
        for indices in batches(lengths, tokens_at_once(device)):
            yield indices, self.batch([sequences[index] for index in indices], device)
