"""Sentences of many classes: trained to be near their class, used to find a known sentence of the same class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, Vectors
from kexue_train.downstream.finetune.bag_of_words import BUCKETS, SparseRows, Vectorizer
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.losses import am_softmax_loss
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder, Head
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.settings import AM_MARGIN, AM_SCALE
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError

Labels = npt.NDArray[np.int64]
_QUERIES_AT_ONCE = 256


class RetrievalProblem:
    """A labelled set as a model reads it.

    Every sentence of dev or test is a query among the training sentences: ``accuracy`` is the share whose nearest is of
    the right class, ``mrr`` the mean of 1/rank of the nearest of the right class.
    """

    metric = "accuracy"
    head: Head = "classes"

    def __init__(
        self, splits: Splits, tokenizer: Any, max_length: int, *, scale: float = AM_SCALE, margin: float = AM_MARGIN
    ) -> None:
        """Read the records.

        Raises:
            EvaluationError: If a label is in no training record, or there is only one.
        """
        self.scale, self.margin = scale, margin
        names = sorted({record.text("label") for record in splits.all_train})
        number = {name: index for index, name in enumerate(names)}
        if len(names) < 2:
            raise EvaluationError(
                f"{splits.train[0].where}: every training record has the label {names[0]!r}; classes can only be told "
                "apart where there are at least two"
            )
        records = splits.by_name
        self.texts = {split: [record.text("text") for record in found] for split, found in records.items()}
        self.labels = {split: _numbers(found, number) for split, found in records.items()}
        self.sentences = {split: Sentences.read(tokenizer, texts, max_length) for split, texts in self.texts.items()}
        self.num_examples, self.num_labels = len(splits.train), len(names)

    def loss(self, model: BiEncoder, indices: Indices) -> Tensor:
        """Return the loss of a batch of training sentences."""
        ids = self.sentences["train"].ids
        cosines = model.class_cosines(model.vectors([ids[i] for i in indices]))
        labels = model.on_device(self.labels["train"][indices])
        return am_softmax_loss(cosines, labels, self.scale, self.margin)

    def with_margin(self, margin: float) -> RetrievalProblem:
        """Return the same problem, learnt with another margin."""
        other = copy.copy(self)
        other.margin = margin
        return other

    @torch.inference_mode()
    def class_diameter(self, model: BiEncoder) -> float:
        """Return how wide the classes of the training sentences are, as a margin for their cosines.

        A sentence z₁ of class 1 is nearer to z₂ of its class than to z₃ of class 2 if d(z₁, c₁) + m < d(z₁, c₂) with
        m = d(z₂, c₁) + d(z₃, c₂). Here d = 1 - cos, the distance that the loss compares, and both terms are its mean
        over the training sentences (the inequality is exact for √(1 - cos), a metric, so this is an estimate). c is the
        mean direction of a class's sentences: a row of the head may lie far from all of them and still tell them apart.

        Raises:
            EvaluationError: If it is 1 or more: such classes cannot lead by that.

        Source: https://kexue.fm/archives/8656.
        """
        vectors = _unit(model.encode(self.sentences["train"])).double()
        labels = torch.from_numpy(self.labels["train"])
        sums = torch.zeros(self.num_labels, vectors.shape[1], dtype=torch.float64).index_add_(0, labels, vectors)
        diameter = 2 * float((1 - (vectors * F.normalize(sums)[labels]).sum(1)).mean())
        if diameter >= 1:
            raise EvaluationError(
                f"after training without a margin, the mean cosine of a sentence with its class is "
                f"{1 - diameter / 2:.2f}, so the classes are {diameter:.2f} wide, too much for a margin; train longer "
                "(--epochs), or give --margin"
            )
        return diameter

    def score(self, model: BiEncoder, split: str) -> dict[str, float]:
        """Score the queries of a split by cosine."""
        queries, known = (_unit(model.encode(self.sentences[name])) for name in (split, "train"))
        return self._scores(split, (piece @ known.T for piece in torch.split(queries, _QUERIES_AT_ONCE)))

    def words(self, split: str) -> dict[str, float]:
        """Score the queries of a split by tf-idf vectors of character n-grams."""
        vectorizer = Vectorizer.fit([(text,) for text in self.texts["train"]])
        known = _sparse(vectorizer.rows([(text,) for text in self.texts["train"]]))
        texts = self.texts[split]
        queries = (texts[i : i + _QUERIES_AT_ONCE] for i in range(0, len(texts), _QUERIES_AT_ONCE))
        pieces = (_sparse(vectorizer.rows([(text,) for text in piece])).to_dense() for piece in queries)
        return self._scores(split, (torch.sparse.mm(known, piece.T).T for piece in pieces))

    def _scores(self, split: str, cosines: Iterable[Tensor]) -> dict[str, float]:
        labels, known = (torch.from_numpy(self.labels[name]) for name in (split, "train"))
        ranks, done = [], 0
        for piece in cosines:
            ranks.append(first_ranks(piece, labels[done : done + len(piece)], known))
            done += len(piece)
        rank = torch.cat(ranks).double()
        return {"accuracy": float((rank == 1).double().mean()), "mrr": float((1 / rank).mean())}


def first_ranks(cosines: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Return the rank of the nearest sentence of the right class, counted from 1: (Q,).

    A sentence of another class that is as near comes before it, so equal vectors earn nothing; a class that has no
    sentence comes after all.

    Args:
        cosines: (Q, T) of queries and known sentences.
        labels: (Q,) of the queries.
        known: (T,) of the known sentences.
    """
    is_right = labels[:, None] == known
    best = cosines.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((cosines >= best) & ~is_right).sum(dim=1)


def _unit(vectors: Vectors) -> Tensor:
    return F.normalize(torch.from_numpy(vectors))


def _sparse(rows: SparseRows) -> Tensor:
    """Return the rows as a sparse matrix (n, columns)."""
    ends = torch.cat([rows.starts[1:], torch.tensor([len(rows.buckets)])])
    row = torch.repeat_interleave(torch.arange(len(ends)), ends - rows.starts)
    indices = torch.stack([row, rows.buckets])
    return torch.sparse_coo_tensor(indices, rows.weights, (len(ends), BUCKETS), check_invariants=True).coalesce()


def _numbers(records: Sequence[Record], number: dict[str, int]) -> Labels:
    for record in records:
        if record.text("label") not in number:
            raise EvaluationError(
                f"{record.where}: the label {record.text('label')!r} is in no training record, so it cannot be learnt"
            )
    return np.array([number[record.text("label")] for record in records], np.int64)
