"""Texts in the order of their likeness to another, by the vectors of the model that wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.sequences import Ids


class Candidate(NamedTuple):
    """A text that was written."""

    text: str
    log_prob: float


class Ranked(NamedTuple):
    """A paraphrase."""

    text: str
    similarity: float
    """Cosine of its [CLS] vector and that of the original."""
    log_prob: float
    """Natural logarithm of the probability that the model writes it."""


def rank(loaded: LoadedHead, source: Ids, candidates: Sequence[Candidate]) -> list[Ranked]:
    """Return the candidates, the most similar first; of equal ones the first by the text.

    Args:
        loaded: A model whose body is ``roformer``.
        source: [CLS] text [SEP] of the original.
        candidates: Different texts.

    Raises:
        EvaluationError: If a vector is not finite.
    """
    if not candidates:
        return []
    read = Sentences.read(loaded.tokenizer, [candidate.text for candidate in candidates], loaded.fitting(1 << 20))
    body = replace(loaded, model=loaded.model.roformer)
    vectors = encode_sentences(body, replace(read, ids=[source, *read.ids]), ["cls"])["cls"].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[1:] @ vectors[0]
    ranked = [Ranked(c.text, float(cosine), c.log_prob) for c, cosine in zip(candidates, cosines, strict=True)]
    return sorted(ranked, key=lambda entry: (-entry.similarity, entry.text))
