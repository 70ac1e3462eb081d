"""How alike two texts are, from both in one sequence: CoSENT learns the order of graded scores.

Reading both together costs a forward pass per pair, where sentence vectors cost one per sentence; it is more exact.
Source: https://kexue.fm/archives/9341.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kexue_train.downstream.evaluate.sentence_vectors.score_set import word_cosines
from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman
from kexue_train.downstream.finetune.bag_of_words import Text
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.losses import cosent_loss
from kexue_train.downstream.finetune.tasks.classification import join_texts, text_of
from kexue_train.downstream.finetune.tasks.problem import Predictions, Problem, Scores, WordScores
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import SimilarityTask
from kexue_train.downstream.sequences import Reader, Segments
from kexue_train.foundation.errors import EvaluationError

_SCALE = 1.0  # of the model's one output, which has no bounds as a cosine has


@dataclass(frozen=True, kw_only=True)
class PairSimilarityProblem(Problem):
    """Pairs in tokens; by split: their texts, their sequences and their scores (n,)."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metric: ClassVar[str] = "spearman"

    texts: dict[str, list[Text]]
    sequences: dict[str, list[Segments]]
    graded: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def make(cls, task: SimilarityTask, splits: Splits, reader: Reader) -> PairSimilarityProblem:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, a score is no number, or all scores of a split are equal.
        """
        records = splits.by_name
        texts = {split: [text_of(task, record) for record in found] for split, found in records.items()}
        graded = {split: np.array([record.number(task.score) for record in found]) for split, found in records.items()}
        for split, scores in graded.items():
            if np.ptp(scores) == 0:
                raise EvaluationError(
                    f"{getattr(task, split) or task.train}: all {len(scores)} pairs of {split} have the score "
                    f"{scores[0]:g}, so there is no order; give pairs with different scores"
                )
        return cls(
            reader=reader,
            num_labels=1,  # a number per pair
            num_examples=len(splits.train),
            texts=texts,
            sequences={split: join_texts(of_split, reader) for split, of_split in texts.items()},
            graded=graded,
        )

    def predict(self, model: Any, indices: Indices) -> list[Predictions]:  # noqa: ARG002  # there is no such thing
        """Refuse: a pair has one number, no distribution over answers.

        Raises:
            EvaluationError: Always.
        """
        raise EvaluationError("R-Drop compares distributions over answers, and similarity has none; leave out --rdrop")

    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the loss of a batch of training pairs, each compared with all others of the batch."""
        inputs = self.reader.batch([self.sequences["train"][index] for index in indices], model.device)
        scores = torch.from_numpy(self.graded["train"][indices]).to(model.device)
        return cosent_loss(_numbers(model, inputs), scores, _SCALE)

    @torch.inference_mode()
    def score(self, model: Any, split: str) -> Scores:
        """Score the order of the pairs.

        Raises:
            EvaluationError: If all pairs get the same number.
        """
        found = np.zeros(len(self.graded[split]))
        for indices, inputs in self.reader.in_batches(self.sequences[split], model.device):
            found[indices] = _numbers(model, inputs).cpu().numpy()
        return {"spearman": spearman(found, self.graded[split])}

    def bag_of_words(self) -> WordScores:
        """Score cosines of words weighted by tf-idf.

        Raises:
            EvaluationError: If no pair shares a word, or all share as much.
        """
        return WordScores(
            {
                split: {"spearman": spearman(_word_cosines(texts), self.graded[split])}
                for split, texts in self.texts.items()
                if split != "train"
            }
        )


def _numbers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(**inputs).logits
    return logits.float().flatten()


def _word_cosines(pairs: Sequence[Text]) -> npt.NDArray[np.float64]:
    sentences = [text for pair in pairs for text in pair]
    return word_cosines(sentences, np.arange(len(sentences)).reshape(-1, 2))
