"""One of several options, each read together with the text: ``[CLS] text [SEP] question option [SEP]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.tasks.problem import (
    Labels,
    Predictions,
    Problem,
    Scores,
    accuracy,
    guessing_baselines,
)
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ChoiceTask
from kexue_train.downstream.sequences import Reader, Segments
from kexue_train.downstream.task_files import Record, fill_template
from kexue_train.foundation.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class ChoiceProblem(Problem):
    """A choice in tokens; by split: the options' sequences of every record, and the indices of the right ones (n,)."""

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    metric: ClassVar[str] = "accuracy"

    options: dict[str, list[list[Segments]]]
    labels: dict[str, Labels]

    @classmethod
    def make(cls, task: ChoiceTask, splits: Splits, reader: Reader) -> ChoiceProblem:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, or the label is not an index of its options.
        """
        splits_by_name = splits.by_name.items()
        return cls(
            reader=reader,
            num_labels=1,  # a number per option
            num_examples=len(splits.train),
            options={split: _read_options(task, records, reader) for split, records in splits_by_name},
            labels={
                split: np.array([read_label(task, record) for record in records]) for split, records in splits_by_name
            },
        )

    def predict(self, model: Any, indices: Indices) -> list[Predictions]:  # noqa: D102
        options = [self.options["train"][index] for index in indices]
        inputs = self.reader.batch([option for of_record in options for option in of_record], model.device)
        numbers = torch.split(_numbers(model, inputs), [len(of_record) for of_record in options])
        labels = torch.from_numpy(self.labels["train"][indices]).to(model.device)
        return [Predictions(pad_sequence(list(numbers), batch_first=True, padding_value=-torch.inf), labels)]

    @torch.inference_mode()
    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        options = self.options[split]
        flat = [option for of_record in options for option in of_record]
        numbers = np.zeros(len(flat), np.float32)
        for indices, inputs in self.reader.in_batches(flat, model.device):
            numbers[indices] = _numbers(model, inputs).cpu().numpy()
        per_record = np.split(numbers, np.cumsum([len(of_record) for of_record in options])[:-1])
        return accuracy(np.array([of_record.argmax() for of_record in per_record]), self.labels[split])

    def baselines(self) -> dict[str, dict[str, Scores]]:
        """Score guessing, and always the position that is most often right in training."""
        chances = {
            split: float(np.mean([1 / len(of_record) for of_record in options]))
            for split, options in self.options.items()
            if split != "train"
        }
        return guessing_baselines(self.labels, chances)


def read_label(task: ChoiceTask, record: Record) -> int:
    """Return the index of the right option.

    Raises:
        EvaluationError: If it is missing or not an index of the options.
    """
    label, size = record.value(task.label), len(record.texts(task.options))
    if type(label) is not int or not 0 <= label < size:
        raise EvaluationError(
            f"{record.where}: '{task.label}' is {label!r}; expected the index of the right option, a number from 0 to "
            f"{size - 1}"
        )
    return label


def _read_options(task: ChoiceTask, records: Sequence[Record], reader: Reader) -> list[list[Segments]]:
    contexts = reader.spell([fill_template(task.context, record) for record in records])
    read = []
    for record, context in zip(records, contexts, strict=True):
        question = fill_template(task.question, record)
        options = reader.spell([f"{question} {option}" for option in record.texts(task.options)])
        read.append([reader.join(context.ids, option.ids, keep_second=True) for option in options])
    return read


def _numbers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return one number per sequence [B], each a record with one option, so that records may differ in options."""
    logits: Tensor = model(**{name: tensor[:, None] for name, tensor in inputs.items()}).logits
    return logits.float().flatten()
