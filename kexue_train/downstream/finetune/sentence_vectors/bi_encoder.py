"""An encoder with a pooling and, for some losses, a head on its vectors; and what their cosines are trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import (
    Sentences,
    Vectors,
    encode_sentences,
    hidden_states,
    pool,
)
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.sequences import Ids
from kexue_train.downstream.settings import Pooling

COSENT_SCALE = 20.0
AM_SCALE, AM_MARGIN = 30.0, 0.35


def cosent_loss(cosines: Tensor, scores: Tensor, scale: float = COSENT_SCALE) -> Tensor:
    """Return log(1 + Σ exp(λ (cos_l - cos_m))) over all ordered pairs with score_m > score_l: a scalar, at least 0.

    Only the order of the scores counts, as for Spearman's correlation. 0 where all scores are equal.

    Args:
        cosines: (B,) of the pairs of a batch, or any other measure of similarity.
        scores: (B,), the more, the more alike.
        scale: λ.

    Source: https://kexue.fm/archives/8847.
    """
    differences = scale * (cosines[None, :] - cosines[:, None])  # [m, l]
    wrong = differences.masked_fill(scores[:, None] <= scores[None, :], -torch.inf)
    return torch.cat([wrong.flatten(), wrong.new_zeros(1)]).logsumexp(0)


def am_softmax_loss(cosines: Tensor, labels: Tensor, scale: float = AM_SCALE, margin: float = AM_MARGIN) -> Tensor:
    """Return the mean of log(1 + Σ_{i≠y} exp(s (cos_i + m - cos_y))): the right class has to lead by the margin.

    Without a margin it is the cross-entropy of s · cos.

    Args:
        cosines: (B, C) of vectors and classes.
        labels: (B,) of the right classes.
        scale: s.
        margin: m.

    Source: https://kexue.fm/archives/8656, https://kexue.fm/archives/5743.
    """
    right = F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    return F.cross_entropy(scale * (cosines - margin * right), labels)


Head = Literal["none", "comparison", "classes"]
_HEAD_STD = 0.02


class BiEncoder(nn.Module):
    """All of it is trained; only the encoder is kept.

    The head is a matrix without bias: ``comparison`` (3E, C) of two vectors, ``classes`` (C, E), a direction each.
    """

    def __init__(self, loaded: LoadedHead, pooling: Pooling, head: Head, num_labels: int, *, seed: int) -> None:
        super().__init__()
        self.loaded, self.pooling = loaded, pooling
        self.body = loaded.model
        self.head: nn.Parameter | None = None
        if head != "none":
            size = int(loaded.model.config.hidden_size)
            shape = (3 * size, num_labels) if head == "comparison" else (num_labels, size)
            random = torch.Generator().manual_seed(seed)
            self.head = nn.Parameter((_HEAD_STD * torch.randn(shape, generator=random)).to(loaded.device))

    def vectors(self, rows: Sequence[Ids]) -> Tensor:
        """Return the vectors (B, E) of token sequences, with gradients."""
        states, mask = hidden_states(self.body, self.loaded.tokenizer, rows)
        return pool(states, mask, self.pooling)

    def encode(self, sentences: Sentences) -> Vectors:
        """Return the vectors (n, E) of sentences, without gradients, in large batches."""
        return encode_sentences(self.loaded, sentences, [self.pooling])[self.pooling]

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Return logits (B, C) of (u, v, |u - v|).

        Source: Reimers and Gurevych, "Sentence-BERT", https://arxiv.org/abs/1908.10084.
        """
        assert self.head is not None
        return torch.cat([first, second, (first - second).abs()], dim=1) @ self.head

    def class_cosines(self, vectors: Tensor) -> Tensor:
        """Return the cosines (B, C) of vectors and class directions."""
        assert self.head is not None
        return F.normalize(vectors) @ F.normalize(self.head).T

    def on_device(self, values: np.ndarray) -> Tensor:
        """Move ``values`` to where the encoder computes."""
        return torch.from_numpy(values).to(self.loaded.device)
