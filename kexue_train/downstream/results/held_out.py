"""Masked words and next sentences of held-out text (``mlm.json``), compared with guessing."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from kexue_train.downstream.results.result import Headline, ResultFailure, ResultPart, ResultTable, Score, confidence

_GROUP = "held-out text"


class _GivenValuesOnly(ResultPart):
    """Contents of which some values may be missing in the file: what was not given is not written."""

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in {"kind", *self.model_fields_set}}


class HiddenScores(_GivenValuesOnly):
    """Scores on tokens behind [MASK] alone; where a token is shown, a model may copy it."""

    predictions: int
    mlm_loss: float | None
    """Nats; None without predictions, like the next."""
    mlm_accuracy: float | None
    words: int = 0
    """Words of which some token was hidden."""
    word_accuracy: float | None = None
    """Share of words of which every hidden token is right."""
    unigram_entropy: float | None = None
    """Nats: the lowest loss on these targets without context."""
    gain_over_unigram_nats: float | None = None


class HeldOutBaselines(_GivenValuesOnly):
    """What needs no model."""

    uniform: float
    """Loss in nats of uniform guessing."""
    unigram_entropy: float
    """Nats: the lowest loss on these targets without context."""
    unigram_cross_entropy: float
    """Loss in nats of the frequencies of the training text."""
    most_frequent_token: int
    most_frequent_token_accuracy: float
    nsp_majority: float | None
    """Accuracy of the more frequent answer."""
    most_frequent_token_text: str | None = None


class FrequencyBand(ResultPart):
    """Hidden tokens of about the same frequency."""

    tokens: int
    """Different tokens."""
    training_share: float
    """Share of the training text that they make up."""
    predictions: int
    mlm_loss: float | None
    mlm_accuracy: float | None


class SentenceScore(ResultPart):
    """How expected a sentence is."""

    sentence: str
    tokens: int
    pseudo_perplexity: float
    """Exponential of the mean negative log-probability of its tokens, each masked alone."""


class HeldOutResults(_GivenValuesOnly):
    """The contents of the file; losses are means over tokens (pairs), in nats."""

    kind: Literal["held_out"] = "held_out"
    predictions: int
    mlm_loss: float
    mlm_accuracy: float
    words: int = 0
    word_accuracy: float | None = None
    mlm_perplexity: float
    gain_over_unigram_nats: float
    hidden_only: HiddenScores | None = None
    nsp_loss: float | None
    """None without pairs or without an NSP head, like the next."""
    nsp_accuracy: float | None
    pairs: int
    has_nsp_head: bool
    baselines: HeldOutBaselines
    frequency_bands: list[FrequencyBand]
    """From the most frequent tokens to the rarest, each an equal share of the training text."""
    rows: int
    seq_len: int
    vocab_size: int
    parameters: int
    seed: int
    sentences: list[SentenceScore] = []

    @property
    def failures(self) -> list[ResultFailure]:
        """Nothing: a model that cannot be scored has no file."""
        return []

    def tables(self) -> list[ResultTable]:
        """Return a table of the masked tokens, and one of the next sentences if there are any."""
        return [self._masked_tokens(), *self._next_sentences()]

    def notes(self) -> list[str]:
        """Return how to read ± and the bound without context, and the pseudo-perplexities."""
        return [
            "± is half of a 95 % interval. “Best without context” knows exactly how often each target occurs.",
            *(f"pseudo-perplexity {entry.pseudo_perplexity:,.1f}: {entry.sentence}" for entry in self.sentences),
        ]

    def scores(self) -> list[Score]:
        """Return the scores of both heads."""
        hidden = self.hidden_only
        candidates = [
            ("loss", "loss on hidden tokens (nats)", hidden.mlm_loss if hidden else None),
            ("accuracy", "hidden tokens found", hidden.mlm_accuracy if hidden else None),
            ("perplexity", "perplexity of all predicted tokens", self.mlm_perplexity),
            ("accuracy", "next-sentence accuracy", self.nsp_accuracy),
        ]
        return [Score(_GROUP, "fill-mask", metric, name, v) for metric, name, v in candidates if v is not None]

    def headlines(self) -> list[Headline]:
        """Return loss and accuracy of both heads."""
        found, hidden = [], self.hidden_only
        if hidden and hidden.mlm_loss is not None and hidden.unigram_entropy is not None:
            found = [
                Headline(
                    "Held-out loss", f"{hidden.mlm_loss:.2f}", f"nats; {hidden.unigram_entropy:.2f} without context"
                ),
                Headline("Tokens found", f"{hidden.mlm_accuracy:.1%}", f"of {hidden.predictions:,} hidden"),
            ]
        if self.nsp_accuracy is not None:
            found.append(
                Headline("Next sentence", f"{self.nsp_accuracy:.1%}", f"guessing: {self.baselines.nsp_majority:.1%}")
            )
        return found

    def _masked_tokens(self) -> ResultTable:
        baselines, hidden = self.baselines, self.hidden_only
        frequent = baselines.most_frequent_token_text or f"token {baselines.most_frequent_token}"
        rows = []
        if hidden:
            found = _share(hidden.mlm_accuracy, hidden.predictions)
            rows.append(["The model, hidden tokens only", _nats(hidden.mlm_loss), found])
            if hidden.word_accuracy is not None:
                rows.append(["The model, whole hidden words", "", _share(hidden.word_accuracy, hidden.words)])
            rows.append(["Best without context, same tokens", _nats(hidden.unigram_entropy), ""])
        rows += [
            ["The model, all predicted tokens", _nats(self.mlm_loss), _share(self.mlm_accuracy, self.predictions)],
            ["Entropy of the targets", _nats(baselines.unigram_entropy), ""],
            ["Frequencies of the training text", _nats(baselines.unigram_cross_entropy), ""],
            [f"Always “{frequent}”", "", f"{baselines.most_frequent_token_accuracy:.1%}"],
            ["Uniform guessing", _nats(baselines.uniform), f"{1 / self.vocab_size:.2%}"],
        ]
        caption = f"Masked tokens: {self.predictions:,} predictions in {self.rows:,} held-out rows"
        return ResultTable(caption, ["", "Loss (nats)", "Accuracy"], rows)

    def _next_sentences(self) -> list[ResultTable]:
        if self.nsp_accuracy is None:
            return []
        rows = [
            ["The model", _nats(self.nsp_loss), _share(self.nsp_accuracy, self.pairs)],
            ["Guessing the more frequent answer", _nats(math.log(2)), f"{self.baselines.nsp_majority:.1%}"],
        ]
        return [ResultTable(f"Next sentence: {self.pairs:,} held-out pairs", ["", "Loss (nats)", "Accuracy"], rows)]


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(share: float | None, number: int) -> str:
    """Return a share with the half width of its 95 % interval."""
    return "" if share is None else f"{share:.1%} ± {confidence(share, number):.1%}"
