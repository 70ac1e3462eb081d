"""The head of next sentences answers a task that it was never trained for."""

from __future__ import annotations

from functools import cache

import numpy as np

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.pretrained import pretrained
from claims.training.text import SEQ_LEN, documents
from claims.training.topics import Topics, find_topics
from claims.verdict import Verdict, above, all_of
from kexue_train.downstream.evaluate.zero_shot.contrast import candidates_contrast
from kexue_train.downstream.evaluate.zero_shot.prompt_scores import score_next_sentences
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.task_files import Text


def measure(seed: int, setting: Setting) -> Figures:
    """Accuracies in percent: as asked, with the prompts of other topics, and with the topic words taken out."""
    loaded, scores = pretrained(setting, seed)
    topics = _topics(setting)
    answers = np.array(topics.answers)
    chosen = _answer(loaded, topics, topics.passages)
    hidden = _answer(loaded, topics, topics.without_words())
    return {
        "next sentences, held out": 100 * scores["nsp_accuracy"],
        "zero-shot": 100 * float(np.mean(chosen == answers)),
        "prompts permuted": 100 * float(np.mean((chosen + 1) % len(topics.words) == answers)),
        "topic words taken out": 100 * float(np.mean(hidden == answers)),
    }


@cache
def _topics(setting: Setting) -> Topics:
    return find_topics(documents(setting))


def _answer(loaded: LoadedHead, topics: Topics, passages: list[str]) -> np.ndarray:
    prompts = [f"this text is about {word}." for word in topics.words]
    prompt_of = np.tile(np.arange(len(prompts)), (len(passages), 1))
    questions = Questions([Text("", passage, "") for passage in passages], prompts, prompt_of)
    found = score_next_sentences(loaded, questions, order="prefix", has_blank=False, max_length=SEQ_LEN)
    centred = found.scores - found.scores.mean(0)  # a prompt that fits everything says nothing
    return candidates_contrast(centred)


def judge(found: Found) -> Verdict:
    """Above chance (25 %), and above the answers with permuted prompts."""
    gain = [asked - permuted for asked, permuted in zip(found["zero-shot"], found["prompts permuted"], strict=True)]
    return all_of(above(found["zero-shot"], confirms=30.0, refutes=27.0), above(gain, confirms=5.0, refutes=0.0))


CLAIM = Claim(
    name="nsp-zero-shot",
    sentence="A head pretrained on next sentences classifies texts without any training on the task: the prompt "
    "that follows best names the class.",
    source=8671,
    measured="A 2 × 128 encoder pretrained for 500 steps of 8 rows of 128 tokens on masked words and next "
    "sentences; then four topics found in the text itself, 'this text is about WORD.' before up to 60 passages of "
    "each, prompts centred over the passages; beside it the answers with the prompts of the next topic, and with "
    "all topic words taken out of the passages.",
    refuted_if="fewer than 27 % are right (chance is 25 %), or as many with permuted prompts; confirmed above 30 % "
    "and by more than 5 points.",
    unit="%",
    shown=("zero-shot", "prompts permuted", "topic words taken out", "next sentences, held out"),
    picture=Bars(
        ("zero-shot", "prompts permuted", "topic words taken out", "next sentences, held out"), "accuracy, %", mark=25.0
    ),
    seconds=150,
    measure=measure,
    judge=judge,
    trains=True,
    remark="Most passages hold their topic word, so a head that has learnt only that neighbours share words can "
    "answer; the figures without those words show how much of it that is. Larger models on published tasks: "
    "docs/evaluation.md.",
)
