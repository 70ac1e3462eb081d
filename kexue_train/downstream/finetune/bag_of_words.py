"""The baseline of classification: logistic regression on hashed character n-grams, which knows no word and no order.

Every text becomes a unit vector of tf-idf weights: (1 + log count) · log((1 + n) / (1 + n_gram)) in 2¹⁶ buckets. Of a
pair of texts, the grams of the first, of the second and of both are told apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
import xxhash
from torch import Tensor

BUCKETS = 1 << 16
SIZES = (1, 2, 3, 4)
"""Lengths of the n-grams, in characters."""
PENALTIES = (10.0, 1.0, 0.1, 0.01)
"""Tried in turn; the best on the dev set counts, as the best epoch of an encoder does."""
_ITERATIONS = 100

Text = tuple[str, ...]
"""A text, or two of a pair."""
Labels = npt.NDArray[np.int64]


class SparseRows(NamedTuple):
    """A sparse matrix of n rows, as ``embedding_bag`` takes it."""

    buckets: Tensor
    """Column of every entry."""
    starts: Tensor
    """(n,) where each row begins."""
    weights: Tensor
    """Every entry."""


class BagOfWordsScore(NamedTuple):
    """Accuracies of the best penalty."""

    penalty: float
    accuracy: dict[str, float]
    """Split -> accuracy."""


@dataclass(frozen=True)
class Vectorizer:
    """Texts -> unit vectors; ``rarity`` [BUCKETS] is log((1 + texts) / (1 + texts with the gram))."""

    rarity: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, texts: Sequence[Text]) -> Vectorizer:
        """Learn how rare every gram is."""
        found = np.zeros(BUCKETS)
        for text in texts:
            found[list(count_grams(text))] += 1
        return cls(np.log((1 + len(texts)) / (1 + found)))

    def rows(self, texts: Sequence[Text], dtype: torch.dtype = torch.float32) -> SparseRows:
        """Return a row per text; all zeros where every gram is in every text."""
        buckets, weights, starts, size = [], [], [], 0
        for text in texts:
            counts = count_grams(text)
            columns = np.fromiter(counts.keys(), np.int64, len(counts))
            values = (1 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))) * self.rarity[columns]
            buckets.append(columns)
            weights.append(values / max(float(np.linalg.norm(values)), 1e-12))
            starts.append(size)
            size += len(columns)
        return SparseRows(
            torch.from_numpy(np.concatenate(buckets)),
            torch.tensor(starts),
            torch.from_numpy(np.concatenate(weights)).to(dtype),
        )


def count_grams(text: Text) -> Counter[int]:
    """Return bucket -> how often a gram in it occurs; of a pair, a gram in both texts also counts as common."""
    grams = [Counter(part[i : i + n] for n in SIZES for i in range(len(part) - n + 1)) for part in text]
    counts: Counter[int] = Counter()
    for number, own in enumerate(grams):
        for gram, count in own.items():
            counts[_bucket(gram, number)] += count
    if len(grams) == 2:
        for gram, count in (grams[0] & grams[1]).items():
            counts[_bucket(gram, 2)] += count
    return counts


def _bucket(gram: str, part: int) -> int:
    return xxhash.xxh64_intdigest(gram.encode("utf-8", "surrogatepass"), seed=part) % BUCKETS


def logits(rows: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the logits [n, C] of ``weight`` [columns, C] and ``bias`` [C]."""
    products = F.embedding_bag(rows.buckets, weight, rows.starts, mode="sum", per_sample_weights=rows.weights)
    return products + bias


def fit_logistic_regression(
    rows: SparseRows, labels: Tensor, num_labels: int, *, penalty: float, columns: int = BUCKETS
) -> tuple[Tensor, Tensor]:
    """Return the minimum of Σ cross entropy + ½ · penalty · ‖weight‖², by L-BFGS from zero.

    Args:
        rows: n vectors; their dtype is that of the result.
        labels: (n,) in ``range(num_labels)``.
        num_labels: C.
        penalty: Above 0; the bias is free.
        columns: Columns of the vectors.

    Returns:
        weight [columns, C], bias [C].
    """
    weight = torch.zeros(columns, num_labels, dtype=rows.weights.dtype, requires_grad=True)
    bias = torch.zeros(num_labels, dtype=rows.weights.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        history_size=5,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = F.cross_entropy(logits(rows, weight, bias), labels)
        value = errors + 0.5 * penalty / len(labels) * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # the same
    return weight.detach(), bias.detach()


def score_bag_of_words(texts: dict[str, list[Text]], labels: dict[str, Labels], num_labels: int) -> BagOfWordsScore:
    """Learn from ``train``, choose the penalty on ``dev``, score every other split; nothing in it is random."""
    vectorizer = Vectorizer.fit(texts["train"])
    rows = {split: vectorizer.rows(entries) for split, entries in texts.items()}
    best = BagOfWordsScore(math.nan, {})
    for penalty in PENALTIES:
        fitted = fit_logistic_regression(rows["train"], torch.from_numpy(labels["train"]), num_labels, penalty=penalty)
        found = {
            split: float((logits(rows[split], *fitted).argmax(1).numpy() == labels[split]).mean())
            for split in texts
            if split != "train"
        }
        if found["dev"] > best.accuracy.get("dev", -1.0):
            best = BagOfWordsScore(penalty, found)
    return best
