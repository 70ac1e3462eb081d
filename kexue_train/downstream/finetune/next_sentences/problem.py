"""A task of prompts as a model with an NSP head learns it: is this prompt the next sentence of this text?

Source: https://kexue.fm/archives/8671 and arXiv 2109.03564, "NSP-tuning".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.evaluate.zero_shot.contrast import Labels, candidates_contrast
from kexue_train.downstream.evaluate.zero_shot.prompt_scores import (
    EncodedText,
    Layout,
    PromptScores,
    encode_texts,
    next_sentence_log_odds,
    score_next_sentences,
)
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.sequences import Ids, encode


class Asked(NamedTuple):
    """Questions with their right answers."""

    questions: Questions
    answers: Labels
    """(n,) numbers of the right labels."""


@dataclass(frozen=True)
class NextSentenceProblem:
    """A task in the tokens of one model; see ``train_seed`` for what it offers.

    With a prompt per label, the right one is learnt as the next sentence and all others as random ones: the mean binary
    cross-entropy over all prompts of a batch. With one prompt per record, label k of K, in the order of relatedness, is
    learnt as the probability k / (K - 1), and the nearest of these is the answer: no label need be as frequent as
    another, as samples-contrast assumes.
    """

    task: ZeroShotTask
    loaded: LoadedHead
    num_labels: int
    max_length: int
    asked: Mapping[str, Asked]
    """``train``, ``dev`` and ``test``."""
    texts: list[EncodedText]
    """Of the training records."""
    prompts: list[Ids]
    """Of the training records' questions."""

    @classmethod
    def make(
        cls, task: ZeroShotTask, loaded: LoadedHead, num_labels: int, max_length: int, asked: Mapping[str, Asked]
    ) -> NextSentenceProblem:
        """Tokenize the training records."""
        questions = asked["train"].questions
        texts = encode_texts(loaded.tokenizer, questions.texts, has_blank=task.blank is not None)
        prompts = encode(loaded.tokenizer, questions.prompts)
        return cls(task, loaded, num_labels, max_length, asked, texts, prompts)

    @property
    def metric(self) -> str:
        """The metric that chooses the epoch."""
        return "accuracy"

    @property
    def num_examples(self) -> int:
        """Training records."""
        return len(self.texts)

    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the mean binary cross-entropy over all prompts of the training records at ``indices``."""
        tokenizer = self.loaded.tokenizer
        layout = Layout(tokenizer.cls_token_id, tokenizer.sep_token_id, self.task.order, self.max_length)
        questions, answers = self.asked["train"]
        of_prompt = questions.prompt_of[indices]
        row, choice = np.nonzero(of_prompt >= 0)
        pairs = [
            layout.join(self.texts[text], self.prompts[prompt])
            for text, prompt in zip(indices[row], of_prompt[row, choice], strict=True)
        ]
        odds = next_sentence_log_odds(replace(self.loaded, model=model), pairs)
        targets = self._targets(answers[indices][row], choice)
        return F.binary_cross_entropy_with_logits(odds, torch.from_numpy(targets).to(odds))

    def score(self, model: Any, split: str) -> dict[str, float]:
        """Return the accuracy on a split.

        Raises:
            EvaluationError: If a score is not finite.
        """
        asked = self.asked[split]
        return {"accuracy": float((self.answer(self.ask(model, asked.questions)) == asked.answers).mean())}

    def ask(self, model: Any, questions: Questions) -> PromptScores:
        """Return what ``model`` says to all prompts."""
        return score_next_sentences(
            replace(self.loaded, model=model),
            questions,
            order=self.task.order,
            has_blank=self.task.blank is not None,
            max_length=self.max_length,
        )

    def answer(self, found: PromptScores) -> Labels:
        """Return the labels (n,) that a tuned model gives."""
        if self.task.contrast == "candidates":
            return candidates_contrast(found.scores)
        probabilities = (1 + np.tanh(found.scores[:, 0] / 2)) / 2
        return np.rint(probabilities * (self.num_labels - 1)).astype(np.int64)

    def _targets(self, answers: Labels, choices: Labels) -> npt.NDArray[np.float64]:
        targets: npt.NDArray[np.float64] = np.zeros(len(answers))
        targets[:] = choices == answers if self.task.contrast == "candidates" else answers / (self.num_labels - 1)
        return targets
