"""A label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from kexue_train.downstream.finetune.bag_of_words import Text, score_bag_of_words
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.tasks.problem import (
    Labels,
    Predictions,
    Problem,
    Scores,
    WordScores,
    accuracy,
    guessing_baselines,
)
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ClassificationTask, SimilarityTask
from kexue_train.downstream.sequences import Reader, Segments
from kexue_train.downstream.task_files import Record, fill_template
from kexue_train.foundation.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class ClassificationProblem(Problem):
    """Labelled texts in tokens; by split: texts, their sequences and labels (n,) as indices in ``label_names``."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metric: ClassVar[str] = "accuracy"

    texts: dict[str, list[Text]]
    sequences: dict[str, list[Segments]]
    labels: dict[str, Labels]

    @classmethod
    def make(cls, task: ClassificationTask, splits: Splits, reader: Reader) -> ClassificationProblem:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, a label is not known, or all are the same.
        """
        names = list(task.labels) or sorted({record.text(task.label) for record in splits.all_train})
        if len(names) < 2:
            raise EvaluationError(
                f"{task.train}: every record has the label {names[0]!r}; a choice needs at least two labels"
            )
        records = splits.by_name
        texts = {split: [text_of(task, record) for record in of_split] for split, of_split in records.items()}
        return cls(
            reader=reader,
            num_labels=len(names),
            num_examples=len(splits.train),
            label_names=names,
            texts=texts,
            sequences={split: join_texts(of_split, reader) for split, of_split in texts.items()},
            labels={split: number_labels(task, of_split, names) for split, of_split in records.items()},
        )

    def predict(self, model: Any, indices: Indices) -> list[Predictions]:  # noqa: D102
        inputs = self.reader.batch([self.sequences["train"][index] for index in indices], model.device)
        labels = torch.from_numpy(self.labels["train"][indices]).to(model.device)
        return [Predictions(model(**inputs).logits.float(), labels)]

    @torch.inference_mode()
    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        found = np.zeros(len(self.labels[split]), np.int64)
        for indices, inputs in self.reader.in_batches(self.sequences[split], model.device):
            found[indices] = model(**inputs).logits.argmax(-1).cpu().numpy()
        return accuracy(found, self.labels[split]) | {"macro_f1": macro_f1(found, self.labels[split])}

    def baselines(self) -> dict[str, dict[str, Scores]]:
        """Score guessing, and always the most frequent label of the training set."""
        return guessing_baselines(
            self.labels, {split: 1 / self.num_labels for split in self.labels if split != "train"}
        )

    def bag_of_words(self) -> WordScores:
        """Score a logistic regression on hashed character n-grams."""
        found = score_bag_of_words(self.texts, self.labels, self.num_labels)
        return WordScores({split: {"accuracy": value} for split, value in found.accuracy.items()}, found.penalty)


def text_of(task: ClassificationTask | SimilarityTask, record: Record) -> Text:
    """Return the text, or the two of a pair.

    Raises:
        EvaluationError: If the record lacks a value.
    """
    return tuple(fill_template(template, record) for template in (task.text, task.text_b) if template is not None)


def number_labels(task: ClassificationTask, records: Sequence[Record], names: Sequence[str]) -> Labels:
    """Return the label of every record as its index in ``names``: (n,).

    Raises:
        EvaluationError: If it is missing or not known.
    """
    indices = {name: index for index, name in enumerate(names)}
    found = np.zeros(len(records), np.int64)
    for number, record in enumerate(records):
        label = record.text(task.label)
        if label not in indices:
            shown = ", ".join(list(names)[:10]) + (", …" if len(names) > 10 else "")
            raise EvaluationError(
                f"{record.where}: the label {label!r} is not known; the training set has {shown}. "
                "Correct the record, or list all labels in the task"
            )
        found[number] = indices[label]
    return found


def macro_f1(found: Labels, answers: Labels) -> float:
    """Return the mean over the labels among ``answers`` (n,) of 2 · right / (found + expected)."""
    size = 1 + int(max(found.max(), answers.max()))
    right = np.bincount(answers[found == answers], minlength=size)
    expected = np.bincount(answers, minlength=size)
    either = expected + np.bincount(found, minlength=size)
    return float((2 * right / np.maximum(either, 1))[expected > 0].mean())


def join_texts(texts: Sequence[Text], reader: Reader) -> list[Segments]:
    """Return the sequence of every text, or of the two texts of every pair."""
    spelled = [reader.spell(parts) for parts in zip(*texts, strict=True)]
    return [reader.join(*(part.ids for part in parts)) for parts in zip(*spelled, strict=True)]
