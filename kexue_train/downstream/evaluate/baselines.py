"""What can be scored without any model: the bars a trained model has to pass. Pure NumPy on token counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass
class TokenSums:
    """Sums over predictions, kept by target token so that memory does not grow with their number; each [V]."""

    count: Counts
    loss: npt.NDArray[np.float64]
    correct: Counts

    @classmethod
    def zeros(cls, vocab_size: int) -> TokenSums:
        """Return sums without any prediction."""
        return cls(np.zeros(vocab_size, np.int64), np.zeros(vocab_size), np.zeros(vocab_size, np.int64))

    def add(
        self, targets: npt.NDArray[np.int64], losses: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]
    ) -> None:
        """Add predictions; all (n,)."""
        size = len(self.count)
        self.count += np.bincount(targets, minlength=size)
        self.loss += np.bincount(targets, weights=losses, minlength=size)
        self.correct += np.bincount(targets[correct], minlength=size)

    def scores(self, tokens: npt.NDArray[np.intp] | slice = slice(None)) -> dict[str, Any]:
        """Return mean loss and accuracy of the predictions with a target in ``tokens``; None without any."""
        total = int(self.count[tokens].sum())
        return {
            "predictions": total,
            "mlm_loss": float(self.loss[tokens].sum() / total) if total else None,
            "mlm_accuracy": float(self.correct[tokens].sum() / total) if total else None,
        }


@dataclass
class WordSums:
    """Words that were predicted, and those of which every token was right."""

    words: int = 0
    right: int = 0

    def add(self, word_of_token: Counts, correct: npt.NDArray[np.bool_]) -> None:
        """Add predictions by the number of their word (n,), which counts no word of another call."""
        words = np.unique(word_of_token)
        self.words += len(words)
        self.right += len(words) - len(np.unique(word_of_token[~correct]))

    def scores(self) -> dict[str, Any]:
        """Return the share of words that are right as a whole; None if there is no word."""
        return {"words": self.words, "word_accuracy": self.right / self.words if self.words else None}


def unigram_entropy(counts: Counts) -> float:
    """Return the entropy in nats of the empirical distribution ``counts / counts.sum()``.

    No predictor that gives the same distribution everywhere has a lower mean loss on exactly these targets.
    """
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def unigram_cross_entropy(counts: Counts, training_counts: Counts) -> float:
    """Return the mean loss in nats of always predicting the training frequencies, each count plus one."""
    log_share = np.log(training_counts + 1.0) - np.log((training_counts + 1.0).sum())
    return float(-(counts * log_share).sum() / counts.sum())


def frequency_bands(training_counts: Counts, num_bands: int = 4) -> list[npt.NDArray[np.intp]]:
    """Return token ids in ``num_bands`` groups, the most frequent first, with equal shares of the training text.

    Tokens that never occur in training are in the last group.
    """
    order = np.argsort(-training_counts, kind="stable")
    before = np.cumsum(training_counts[order]) - training_counts[order]
    band = np.minimum(num_bands * before // max(1, int(training_counts.sum())), num_bands - 1)
    band[training_counts[order] == 0] = num_bands - 1
    return [order[band == index] for index in range(num_bands)]
