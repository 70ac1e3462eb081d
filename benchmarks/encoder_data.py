"""The tokens that every encoder is measured on: the same sequences as packed rows and as padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import ConfigError

_IGNORED = -100
_MASKED_SHARE = 0.15
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Document:
    """One sequence ``[CLS] A [SEP] B [SEP]`` with 15 % of its tokens to be predicted."""

    ids: _Ids
    labels: _Ids
    """-100 where nothing is predicted."""
    segment_a: int
    """Tokens of the first segment."""
    is_random: int
    """0 or 1; -100 without a second segment."""


def rows_of_samples(folder: Path, num_rows: int) -> list[list[Document]]:
    """The first rows of a folder of sample shards.

    Raises:
        ConfigError: If it holds fewer.
    """
    dataset = SampleDataset(folder)
    if len(dataset) < num_rows:
        raise ConfigError(
            f"{folder} holds {len(dataset)} rows, but {num_rows} are asked for; take fewer rows or rounds"
        )
    columns, generator, rows = dataset.take(np.arange(num_rows)), np.random.default_rng(0), []
    names = ("sequence_lengths", "segment_a_lengths", "next_sentence_labels")
    for row, ids in enumerate(columns["input_ids"].astype(np.int64)):
        lengths, firsts, labels = (columns[name][row] for name in names)
        ends = np.cumsum(lengths)
        sequences = zip(ends - lengths, ends, firsts, labels, strict=True)
        rows.append([_document(ids[a:b], int(first), int(n), generator) for a, b, first, n in sequences if b > a])
    return rows


def made_up_rows(num_rows: int, *, seq_len: int, vocab_size: int) -> list[list[Document]]:
    """Random tokens in rows full to a few slots; sequences have 16 tokens to a whole row, 150 on average."""
    generator, rows = np.random.default_rng(0), []
    for _ in range(num_rows):
        row, free = [], seq_len
        while free >= 16:
            length = int(np.clip(generator.lognormal(4.8, 0.6), 16, free))
            ids = generator.integers(5, vocab_size, length)
            row.append(_document(ids, length // 2, int(generator.integers(2)), generator))
            free -= length
        rows.append(row)
    return rows


def _document(ids: _Ids, segment_a: int, is_random: int, generator: np.random.Generator) -> Document:
    chosen = generator.random(len(ids)) < _MASKED_SHARE
    return Document(ids, np.where(chosen, ids, _IGNORED), segment_a, is_random)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The same documents in both forms, int64 tensors on one device."""

    packed: dict[str, Tensor]
    """[rows, seq_len] ``input_ids``, ``sequence_ids``, ``position_ids``, ``token_type_ids``; flat indices of predicted
    tokens and of pairs' first tokens with their labels."""
    padded: dict[str, Tensor]
    """[documents, longest] as transformers' models take them."""
    lengths: list[int]
    """Of the documents."""
    num_predictions: int

    @property
    def real_tokens(self) -> int:
        """Tokens of the documents, without padding."""
        return sum(self.lengths)


def micro_batches(
    rows: Sequence[list[Document]], rows_each: int, seq_len: int, device: torch.device
) -> Iterator[MicroBatch]:
    """``rows`` in order, so many at a time."""
    for start in range(0, len(rows), rows_each):
        some = rows[start : start + rows_each]
        documents = [document for row in some for document in row]
        padded, packed = _padded(documents), _packed(some, seq_len)
        yield MicroBatch(
            packed={name: torch.from_numpy(array).to(device) for name, array in packed.items()},
            padded={name: torch.from_numpy(array).to(device) for name, array in padded.items()},
            lengths=[len(document.ids) for document in documents],
            num_predictions=sum(int((document.labels >= 0).sum()) for document in documents),
        )


def _packed(rows: Sequence[list[Document]], seq_len: int) -> dict[str, npt.NDArray[Any]]:
    names = ("input_ids", "sequence_ids", "position_ids", "token_type_ids")
    arrays = {name: np.zeros((len(rows), seq_len), np.int64) for name in names}
    labels = np.full((len(rows), seq_len), _IGNORED)
    pairs: list[tuple[int, int]] = []
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, 1):
            place, positions = slice(start, start + len(document.ids)), np.arange(len(document.ids))
            arrays["input_ids"][row, place], labels[row, place] = document.ids, document.labels
            arrays["sequence_ids"][row, place], arrays["position_ids"][row, place] = number, positions
            arrays["token_type_ids"][row, place] = positions >= document.segment_a
            if document.is_random != _IGNORED:
                pairs.append((row * seq_len + start, document.is_random))
            start += len(document.ids)
    slots = np.flatnonzero(labels >= 0)
    arrays |= {"prediction_slots": slots, "prediction_labels": labels.ravel()[slots]}
    pair_slots, pair_labels = np.array(pairs, np.int64).reshape(-1, 2).T
    return {**arrays, "pair_slots": pair_slots.copy(), "pair_labels": pair_labels.copy()}


def _padded(documents: Sequence[Document]) -> dict[str, npt.NDArray[Any]]:
    shape = len(documents), max(len(document.ids) for document in documents)
    arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    arrays["labels"] = np.full(shape, _IGNORED)
    for row, document in enumerate(documents):
        length = len(document.ids)
        arrays["input_ids"][row, :length], arrays["labels"][row, :length] = document.ids, document.labels
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, document.segment_a : length] = 1
    return arrays | {"next_sentence_label": np.array([document.is_random for document in documents])}
