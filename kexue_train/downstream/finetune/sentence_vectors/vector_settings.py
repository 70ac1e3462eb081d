"""How sentence vectors are trained."""

from __future__ import annotations

from pydantic import Field

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import MAX_LENGTH
from kexue_train.downstream.results.similarity import Pooling
from kexue_train.downstream.results.trained_vectors import VectorLoss
from kexue_train.downstream.results.training import FitSettings
from kexue_train.foundation.config import Config


class VectorSettings(Config):
    """What applies to all sets."""

    loss: VectorLoss = "cosent"
    """cosent and sentence-bert: pairs with a score. am-softmax: sentences with a label."""
    pooling: Pooling = "mean"
    """How states become a vector."""
    seeds: int = Field(default=3, ge=1)
    """Trainings on each set, with the seeds 0, 1, ..."""
    max_train: int | None = Field(default=None, ge=2)
    """Learn from so many records at most."""
    max_eval: int | None = Field(default=None, ge=2)
    """Score so many records of each split at most."""
    max_length: int = Field(default=MAX_LENGTH, ge=8)
    """Tokens of a sentence, never more than the model was made for."""
    fit: FitSettings = FitSettings(epochs=5, batch_size=64)
    """How long, how fast, with which extras."""
