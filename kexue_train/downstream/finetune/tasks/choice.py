"""One of several options, each read together with the text: ``[CLS] text [SEP] question option [SEP]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kexue_train.downstream.evaluate.zero_shot.records import Record, fill
from kexue_train.downstream.finetune.loop import Places
from kexue_train.downstream.finetune.tasks.inputs import Reader, Segments
from kexue_train.downstream.finetune.tasks.problem import Problem, Scores, accuracy
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ChoiceTask
from kexue_train.foundation.errors import EvaluationError


@dataclass(frozen=True)
class Choice(Problem):
    """See ``Problem``; by split: the options' sequences of every record, and the places of the right ones (n,)."""

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    metric: ClassVar[str] = "accuracy"

    options: dict[str, list[list[Segments]]]
    labels: dict[str, npt.NDArray[np.int64]]

    @classmethod
    def make(cls, task: ChoiceTask, splits: Splits, reader: Reader) -> Choice:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value, or the label is no place among its options.
        """
        records = {"train": splits.train} | splits.scored
        return cls(
            reader,
            {split: _read_options(task, of_split, reader) for split, of_split in records.items()},
            {
                split: np.array([read_label(task, record) for record in of_split], np.int64)
                for split, of_split in records.items()
            },
        )

    @property
    def num_labels(self) -> int:
        """See ``Problem``, like the following; each option has one number."""
        return 1

    @property
    def num_examples(self) -> int:  # noqa: D102
        return len(self.labels["train"])

    def loss(self, model: Any, places: Places) -> Tensor:  # noqa: D102
        options = [self.options["train"][place] for place in places]
        inputs = self.reader.batch([option for of_record in options for option in of_record], model.device)
        numbers = torch.split(_numbers(model, inputs), [len(of_record) for of_record in options])
        labels = torch.from_numpy(self.labels["train"][places]).to(model.device)
        return F.cross_entropy(pad_sequence(list(numbers), batch_first=True, padding_value=-torch.inf), labels)

    @torch.inference_mode()
    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        options = self.options[split]
        flat = [option for of_record in options for option in of_record]
        numbers = np.zeros(len(flat), np.float32)
        for places, inputs in self.reader.in_batches(flat, model.device):
            numbers[places] = _numbers(model, inputs).cpu().numpy()
        per_record = np.split(numbers, np.cumsum([len(of_record) for of_record in options])[:-1])
        return accuracy(np.array([of_record.argmax() for of_record in per_record]), self.labels[split])

    def baselines(self) -> Mapping[str, dict[str, Scores]]:
        """Guessing, and always the place that is most often right in the training set."""
        frequent = int(np.bincount(self.labels["train"]).argmax())
        scored = {split: labels for split, labels in self.labels.items() if split != "train"}
        shares = {split: np.mean([1 / len(of_record) for of_record in self.options[split]]) for split in scored}
        return {
            "chance": {split: {"accuracy": float(share)} for split, share in shares.items()},
            "majority": {split: accuracy(np.full_like(labels, frequent), labels) for split, labels in scored.items()},
        }


def read_label(task: ChoiceTask, record: Record) -> int:
    """The place of the right option.

    Raises:
        EvaluationError: If it is missing or no place among the options.
    """
    label, size = record.value(task.label), len(record.texts(task.options))
    if type(label) is not int or not 0 <= label < size:
        raise EvaluationError(
            f"{record.where}: '{task.label}' is {label!r}; expected the place of the right option, a number from 0 to "
            f"{size - 1}"
        )
    return label


def _read_options(task: ChoiceTask, records: Sequence[Record], reader: Reader) -> list[list[Segments]]:
    contexts = reader.spell([fill(task.context, record) for record in records])
    read = []
    for record, context in zip(records, contexts, strict=True):
        question = fill(task.question, record)
        options = reader.spell([f"{question} {option}" for option in record.texts(task.options)])
        read.append([reader.join(context.ids, option.ids, keep_second=True) for option in options])
    return read


def _numbers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """One per sequence [B]: every sequence alone is a record with one option, so that their number may differ."""
    logits: Tensor = model(**{name: tensor[:, None] for name, tensor in inputs.items()}).logits
    return logits.float().flatten()
