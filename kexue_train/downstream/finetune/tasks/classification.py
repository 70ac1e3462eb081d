"""A label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.evaluate.zero_shot.records import Record, fill
from kexue_train.downstream.finetune.bag_of_words import BagOfWordsScore, Text, score_bag_of_words
from kexue_train.downstream.finetune.loop import Places
from kexue_train.downstream.finetune.tasks.inputs import Reader, Segments
from kexue_train.downstream.finetune.tasks.problem import Problem, Scores, accuracy
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ClassificationTask
from kexue_train.foundation.errors import EvaluationError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Classification(Problem):
    """See ``Problem``; by split: texts, their sequences and labels (n,) as places in ``names``."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    metric: ClassVar[str] = "accuracy"

    names: list[str]
    texts: dict[str, list[Text]]
    sequences: dict[str, list[Segments]]
    labels: dict[str, Labels]

    @classmethod
    def make(cls, task: ClassificationTask, splits: Splits, reader: Reader) -> Classification:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, a label is not known, or all are the same.
        """
        names = list(task.labels) or sorted({record.text(task.label) for record in splits.all_train})
        if len(names) < 2:
            raise EvaluationError(
                f"{task.train}: every record has the label {names[0]!r}; a choice needs at least two labels"
            )
        records = {"train": splits.train} | splits.scored
        texts = {split: [text_of(task, record) for record in of_split] for split, of_split in records.items()}
        return cls(
            reader,
            names,
            texts,
            {split: _sequences(of_split, reader) for split, of_split in texts.items()},
            {split: find_labels(task, of_split, names) for split, of_split in records.items()},
        )

    @property
    def num_labels(self) -> int:
        """See ``Problem``, like the following."""
        return len(self.names)

    @property
    def label_names(self) -> list[str]:  # noqa: D102
        return self.names

    @property
    def num_examples(self) -> int:  # noqa: D102
        return len(self.labels["train"])

    def loss(self, model: Any, places: Places) -> Tensor:  # noqa: D102
        inputs = self.reader.batch([self.sequences["train"][place] for place in places], model.device)
        labels = torch.from_numpy(self.labels["train"][places]).to(model.device)
        return F.cross_entropy(model(**inputs).logits.float(), labels)

    @torch.inference_mode()
    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        found = np.zeros(len(self.labels[split]), np.int64)
        for places, inputs in self.reader.in_batches(self.sequences[split], model.device):
            found[places] = model(**inputs).logits.argmax(-1).cpu().numpy()
        return accuracy(found, self.labels[split]) | {"macro_f1": macro_f1(found, self.labels[split])}

    def baselines(self) -> Mapping[str, dict[str, Scores]]:
        """Guessing, and always the most frequent label of the training set."""
        frequent = np.bincount(self.labels["train"]).argmax()
        scored = {split: labels for split, labels in self.labels.items() if split != "train"}
        return {
            "chance": {split: {"accuracy": 1 / self.num_labels} for split in scored},
            "majority": {split: accuracy(np.full_like(labels, frequent), labels) for split, labels in scored.items()},
        }

    def bag_of_words(self) -> BagOfWordsScore:  # noqa: D102
        return score_bag_of_words(self.texts, self.labels, self.num_labels)


def text_of(task: ClassificationTask, record: Record) -> Text:
    """The text, or the two of a pair.

    Raises:
        EvaluationError: If the record lacks a value.
    """
    return tuple(fill(template, record) for template in (task.text, task.text_b) if template is not None)


def find_labels(task: ClassificationTask, records: Sequence[Record], names: Sequence[str]) -> Labels:
    """The label (n,) of every record as its place in ``names``.

    Raises:
        EvaluationError: If there is none, or one that is not known.
    """
    places = {name: place for place, name in enumerate(names)}
    found = np.zeros(len(records), np.int64)
    for number, record in enumerate(records):
        label = record.text(task.label)
        if label not in places:
            shown = ", ".join(list(names)[:10]) + (", …" if len(names) > 10 else "")
            raise EvaluationError(
                f"{record.where}: the label {label!r} is not known; the training set has {shown}. "
                "Correct the record, or list all labels in the task"
            )
        found[number] = places[label]
    return found


def macro_f1(found: Labels, answers: Labels) -> float:
    """Mean over the labels among ``answers`` (n,) of 2 · right / (found + expected)."""
    size = 1 + int(max(found.max(), answers.max()))
    right = np.bincount(answers[found == answers], minlength=size)
    expected = np.bincount(answers, minlength=size)
    either = expected + np.bincount(found, minlength=size)
    return float((2 * right / np.maximum(either, 1))[expected > 0].mean())


def _sequences(texts: Sequence[Text], reader: Reader) -> list[Segments]:
    spelled = [reader.spell(parts) for parts in zip(*texts, strict=True)]
    return [reader.join(*(part.ids for part in parts)) for parts in zip(*spelled, strict=True)]
