"""Answers as spans of a text: windows over long texts, the best span of all windows.

A window is ``[CLS] question [SEP] part of the text [SEP]``. Learnt is where the answer starts and ends; a window
without the whole answer points at [CLS]. There are never more such windows than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
import xxhash
from torch import Tensor

from kexue_train.downstream.evaluate.zero_shot.records import Record
from kexue_train.downstream.finetune.loop import Places
from kexue_train.downstream.finetune.tasks.answer_scores import answer_scores
from kexue_train.downstream.finetune.tasks.inputs import Reader, Segments, Spelled
from kexue_train.downstream.finetune.tasks.problem import Problem, Scores
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ReadingTask
from kexue_train.foundation.errors import EvaluationError

_MOST_ANSWER_TOKENS = 64  # SQuAD's scripts have 30 words; Chinese answers may be sentences


class Question(NamedTuple):
    """A question on a text."""

    context: str
    question: str
    answers: list[str]
    """All right ones."""
    span: tuple[int, int] | None
    """First character of the answer to learn, and the one after its last; None if no answer is found in the text."""
    where: str


class Window(NamedTuple):
    """A part of a text with its question."""

    sequence: Segments
    question: int
    """Place of the question in its split."""
    spans: npt.NDArray[np.int64]
    """(tokens of the part, 2) characters of every token."""
    answer: tuple[int, int]
    """First and last slot of the answer; (0, 0), the [CLS], if the window does not have it whole."""


@dataclass(frozen=True)
class Reading(Problem):
    """See ``Problem``."""

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    metric: ClassVar[str] = "f1"

    scoring: str
    questions: dict[str, list[Question]]
    windows: dict[str, list[Window]]

    @classmethod
    def make(cls, task: ReadingTask, splits: Splits, reader: Reader) -> Reading:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value or an answer, or no training answer is found in its text.
        """
        reader.require_places()
        questions = {
            split: [read_question(task, record) for record in records]
            for split, records in ({"train": splits.train} | splits.scored).items()
        }
        windows = {split: _windows(entries, task.stride, reader) for split, entries in questions.items()}
        windows["train"] = _to_learn_from(windows["train"], questions["train"])
        if not windows["train"]:
            raise EvaluationError(f"{task.train}: no answer is found in its text, so there is nothing to learn")
        return cls(reader, task.scoring, questions, windows)

    @property
    def num_labels(self) -> int:
        """See ``Problem``, like the following."""
        return 2

    @property
    def num_examples(self) -> int:  # noqa: D102
        return len(self.windows["train"])

    def loss(self, model: Any, places: Places) -> Tensor:  # noqa: D102
        windows = [self.windows["train"][place] for place in places]
        inputs = self.reader.batch([window.sequence for window in windows], model.device)
        output = model(**inputs)
        hidden = ~inputs["attention_mask"].bool()
        slots = torch.tensor([window.answer for window in windows], device=model.device)
        start, end = (
            F.cross_entropy(logits.float().masked_fill(hidden, -torch.inf), slots[:, side])
            for side, logits in enumerate((output.start_logits, output.end_logits))
        )
        return (start + end) / 2

    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        answers = [question.answers for question in self.questions[split]]
        return answer_scores(self.find(model, split), answers, self.scoring)

    @torch.inference_mode()
    def find(self, model: Any, split: str) -> list[str]:
        """The answer to every question: of all windows the span with the highest sum of logits."""
        windows, questions = self.windows[split], self.questions[split]
        best = [(-np.inf, "")] * len(questions)
        for places, inputs in self.reader.in_batches([window.sequence for window in windows], model.device):
            output = model(**inputs)
            starts, ends = (x.float().cpu().numpy() for x in (output.start_logits, output.end_logits))
            for row, place in enumerate(places):
                window = windows[place]
                first = window.sequence.second_starts
                part = slice(first, first + len(window.spans))
                score, start, end = best_span(starts[row, part], ends[row, part])
                if score > best[window.question][0]:
                    text = questions[window.question].context[window.spans[start, 0] : window.spans[end, 1]]
                    best[window.question] = (score, text)
        return [text for _, text in best]


def best_span(starts: npt.NDArray[np.float32], ends: npt.NDArray[np.float32]) -> tuple[float, int, int]:
    """The highest ``starts[i] + ends[j]`` with i <= j < i + 64, and its i and j; both are (n,), n > 0."""
    sums = starts[:, None] + ends[None, :]
    places = np.arange(len(starts))
    length = places[None, :] - places[:, None]
    sums[(length < 0) | (length >= _MOST_ANSWER_TOKENS)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), int(start), int(end)


def read_question(task: ReadingTask, record: Record) -> Question:
    """The question of a record.

    Raises:
        EvaluationError: If a value is missing, the text is empty, or there is no answer.
    """
    context, answers = record.text(task.context), record.value(task.answers)
    try:
        found = [(str(answer["text"]), int(answer["start"])) for answer in answers]
    except (KeyError, TypeError, ValueError):
        found = []
    if not found or not context.strip():
        raise EvaluationError(
            f"{record.where}: expected a text in '{task.context}', and in '{task.answers}' a list of {{text, start}} "
            "with at least one answer"
        )
    span = next((span for text, start in found if (span := _find(context, text, start))), None)
    return Question(context, record.text(task.question), [text for text, _ in found], span, record.where)


def _find(context: str, answer: str, start: int) -> tuple[int, int] | None:
    """Where ``answer`` stands: at ``start``, or else, if that is wrong, at its first place."""
    if not answer:
        return None
    if context[start : start + len(answer)] != answer:
        start = context.find(answer)
    return None if start < 0 else (start, start + len(answer))


def _windows(questions: Sequence[Question], stride: int, reader: Reader) -> list[Window]:
    """Every text in windows that each begin ``stride`` tokens after the one before."""
    contexts = dict(zip(dict.fromkeys(q.context for q in questions), _spell_contexts(questions, reader), strict=True))
    spelled = reader.spell([question.question for question in questions])
    windows: list[Window] = []
    for number, (question, asked) in enumerate(zip(questions, spelled, strict=True)):
        context = contexts[question.context]
        if not len(context.ids):
            raise EvaluationError(f"{question.where}: the tokenizer finds no token in the text")
        most = (reader.max_length - 3) // 2  # half of the room is left to the text
        reader.num_cut += len(asked.ids) > most
        ids = asked.ids[:most]
        room = reader.max_length - 3 - len(ids)
        step = min(stride, room)
        for start in range(0, max(1, len(context.ids) - room + step), step):
            part = slice(start, start + room)
            sequence = reader.join(ids, context.ids[part])
            spans = context.spans[part]
            windows.append(Window(sequence, number, spans, _slots(question.span, spans, sequence.second_starts)))
    return windows


def _spell_contexts(questions: Sequence[Question], reader: Reader) -> list[Spelled]:
    return reader.spell(list(dict.fromkeys(question.context for question in questions)))


def _slots(span: tuple[int, int] | None, spans: npt.NDArray[np.int64], first: int) -> tuple[int, int]:
    """The slots of the tokens that the answer touches, if it lies whole between the window's ends."""
    if span is None or span[0] < spans[0, 0] or span[1] > spans[-1, 1]:
        return 0, 0
    touched = np.flatnonzero((spans[:, 0] < span[1]) & (spans[:, 1] > span[0]))
    return (first + int(touched[0]), first + int(touched[-1])) if len(touched) else (0, 0)


def _to_learn_from(windows: Sequence[Window], questions: Sequence[Question]) -> list[Window]:
    """Windows with an answer, and at most as many without, chosen by a hash."""
    usable = [window for window in windows if questions[window.question].span is not None]
    answered = [window for window in usable if window.answer != (0, 0)]
    others = [window for window in usable if window.answer == (0, 0)]
    others.sort(key=lambda window: xxhash.xxh64_intdigest(window.sequence.ids.tobytes()))
    return answered + others[: len(answered)]
