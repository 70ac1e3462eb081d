"""Exact match and F1 of answers in a text, as the data sets' own scripts compute them.

* ``squad``: words; small letters, without punctuation and English articles; F1 of the bags of words.
* ``squad_zh``: the same with every Chinese character as a word, as MLQA and XQuAD score Chinese.
* ``cmrc``: units as ``squad_zh``; F1 of the longest run of units that both share, relative to both lengths.

Of several right answers the nearest counts. Where CMRC's script cuts Latin text with NLTK, here runs of letters and
digits are words.

Source: evaluate-v1.1.py of SQuAD, mlqa_evaluation_v1.py of MLQA, cmrc2018_evaluate.py of github.com/ymcui/cmrc2018.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.tasks.problem import Predictions, Problem, Scores
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import ReadingTask
from kexue_train.downstream.sequences import Reader, Segments, Spelled
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNITS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

Units = list[str]


def words(text: str) -> Units:
    """Return the words of English text as SQuAD's script splits them."""
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def mixed_units(text: str) -> Units:
    """Return Chinese characters and Latin words in small letters, without punctuation."""
    return _UNITS.findall(text.lower())


def bag_f1(found: Units, answer: Units) -> float:
    """Return the harmonic mean of precision and recall of the units, counted as often as they occur."""
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer)) if shared else 0.0


def run_f1(found: Units, answer: Units) -> float:
    """Return the F1 of the longest run that both share."""
    matcher = SequenceMatcher(None, found, answer, autojunk=False)
    shared = matcher.find_longest_match().size
    return 2 * shared / (len(found) + len(answer)) if shared else 0.0


_Rules = tuple[Callable[[str], Units], Callable[[Units, Units], float]]
SCORINGS: dict[str, _Rules] = {
    "squad": (words, bag_f1),
    "squad_zh": (mixed_units, bag_f1),
    "cmrc": (mixed_units, run_f1),
}


def answer_scores(found: Sequence[str], answers: Sequence[Sequence[str]], scoring: str) -> dict[str, float]:
    """Return the means over all questions of the best F1 and the best exact match among the right answers.

    Args:
        found: (n,) answers given.
        answers: (n,) right answers of every question, at least one each.
        scoring: Key of ``SCORINGS``.
    """
    units_of, f1_of = SCORINGS[scoring]
    f1 = exact = 0.0
    for text, right in zip(found, answers, strict=True):
        units = units_of(text)
        right_units = [units_of(answer) for answer in right]
        f1 += max(f1_of(units, other) for other in right_units)
        exact += max(_is_same(text, answer, scoring, units_of) for answer in right)
    return {"f1": f1 / len(found), "exact_match": exact / len(found)}


def _is_same(found: str, answer: str, scoring: str, units_of: Callable[[str], Units]) -> bool:
    if scoring == "cmrc":  # its script joins what is left without punctuation
        return _letters(found) == _letters(answer)
    return units_of(found) == units_of(answer)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


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
    """Index of the question in its split."""
    spans: npt.NDArray[np.int64]
    """(tokens of the part, 2) characters of every token."""
    answer: tuple[int, int]
    """First and last slot of the answer; (0, 0), the [CLS], if the window does not have it whole."""


@dataclass(frozen=True, kw_only=True)
class ReadingProblem(Problem):
    """Questions on texts, in windows of tokens."""

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    metric: ClassVar[str] = "f1"

    scoring: str
    questions: dict[str, list[Question]]
    windows: dict[str, list[Window]]

    @classmethod
    def make(cls, task: ReadingTask, splits: Splits, reader: Reader) -> ReadingProblem:
        """Read the records.

        Raises:
            EvaluationError: If a record lacks a value or an answer, or no training answer is found in its text.
        """
        reader.require_offsets()
        questions = {
            split: [read_question(task, record) for record in records] for split, records in splits.by_name.items()
        }
        windows = {split: _windows(entries, task.stride, reader) for split, entries in questions.items()}
        windows["train"] = _to_learn_from(windows["train"], questions["train"])
        if not windows["train"]:
            raise EvaluationError(f"{task.train}: no answer is found in its text, so there is nothing to learn")
        return cls(
            reader=reader,
            num_labels=2,  # start and end
            num_examples=len(windows["train"]),
            scoring=task.scoring,
            questions=questions,
            windows=windows,
        )

    def predict(self, model: Any, indices: Indices) -> list[Predictions]:  # noqa: D102
        windows = [self.windows["train"][index] for index in indices]
        inputs = self.reader.batch([window.sequence for window in windows], model.device)
        output = model(**inputs)
        hidden = ~inputs["attention_mask"].bool()
        slots = torch.tensor([window.answer for window in windows], device=model.device)
        return [
            Predictions(logits.float().masked_fill(hidden, -torch.inf), slots[:, side])
            for side, logits in enumerate((output.start_logits, output.end_logits))
        ]

    def score(self, model: Any, split: str) -> Scores:  # noqa: D102
        answers = [question.answers for question in self.questions[split]]
        return answer_scores(self.find(model, split), answers, self.scoring)

    @torch.inference_mode()
    def find(self, model: Any, split: str) -> list[str]:
        """Return the answer to every question: of all windows the span with the highest sum of logits."""
        windows, questions = self.windows[split], self.questions[split]
        best = [(-np.inf, "")] * len(questions)
        for indices, inputs in self.reader.in_batches([window.sequence for window in windows], model.device):
            output = model(**inputs)
            starts, ends = (x.float().cpu().numpy() for x in (output.start_logits, output.end_logits))
            for row, index in enumerate(indices):
                window = windows[index]
                first = window.sequence.second_starts
                part = slice(first, first + len(window.spans))
                score, start, end = best_span(starts[row, part], ends[row, part])
                if score > best[window.question][0]:
                    text = questions[window.question].context[window.spans[start, 0] : window.spans[end, 1]]
                    best[window.question] = (score, text)
        return [text for _, text in best]


def best_span(starts: npt.NDArray[np.float32], ends: npt.NDArray[np.float32]) -> tuple[float, int, int]:
    """Return the highest ``starts[i] + ends[j]`` with i <= j < i + 64, and its i and j; both are (n,), n > 0."""
    sums = starts[:, None] + ends[None, :]
    indices = np.arange(len(starts))
    length = indices[None, :] - indices[:, None]
    sums[(length < 0) | (length >= _MOST_ANSWER_TOKENS)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), int(start), int(end)


def read_question(task: ReadingTask, record: Record) -> Question:
    """Return the question of a record.

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
    """Find ``answer``: at ``start``, or else, if that is wrong, at its first occurrence."""
    if not answer:
        return None
    if context[start : start + len(answer)] != answer:
        start = context.find(answer)
    return None if start < 0 else (start, start + len(answer))


def _windows(questions: Sequence[Question], stride: int, reader: Reader) -> list[Window]:
    """Cut every text into windows that each begin ``stride`` tokens after the one before."""
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
    """Return the slots of the tokens that the answer touches, if it lies whole between the window's ends."""
    if span is None or span[0] < spans[0, 0] or span[1] > spans[-1, 1]:
        return 0, 0
    touched = np.flatnonzero((spans[:, 0] < span[1]) & (spans[:, 1] > span[0]))
    return (first + int(touched[0]), first + int(touched[-1])) if len(touched) else (0, 0)


def _to_learn_from(windows: Sequence[Window], questions: Sequence[Question]) -> list[Window]:
    """Return the windows with an answer, and at most as many without, chosen by a hash."""
    usable = [window for window in windows if questions[window.question].span is not None]
    answered = [window for window in usable if window.answer != (0, 0)]
    others = [window for window in usable if window.answer == (0, 0)]
    others.sort(key=lambda window: xxhash.xxh64_intdigest(window.sequence.ids.tobytes()))
    return answered + others[: len(answered)]
