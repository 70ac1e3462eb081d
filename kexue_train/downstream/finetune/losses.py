"""What fine-tuning minimizes besides cross-entropy: the order of pairs, classes with a margin, two dropout passes.

All are pure functions of tensors; tests compare each with its formula, written out in NumPy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.settings import AM_MARGIN, AM_SCALE, TEMPERATURE

COSENT_SCALE = 20.0


def cosent_loss(similarities: Tensor, scores: Tensor, scale: float = COSENT_SCALE) -> Tensor:
    """Return log(1 + Σ exp(λ (f_l - f_m))) over all ordered pairs with score_m > score_l: a scalar, at least 0.

    Only the order of the scores counts, as for Spearman's correlation. 0 where all scores are equal.

    Args:
        similarities: (B,) f of the pairs of a batch: cosines of two vectors, or one output for both texts together.
        scores: (B,), the more, the more alike.
        scale: λ; 20 suits cosines, 1 an output without bounds.

    Source: https://kexue.fm/archives/8847, https://kexue.fm/archives/9341.
    """
    differences = scale * (similarities[None, :] - similarities[:, None])  # [m, l]
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


def simcse_loss(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean of -log softmax(cos(u_i, v_j) / τ)_i over j: each vector has to find its own second pass.

    The other sentences of the batch are what it must be told from. 0 for a batch of one sentence.

    Args:
        first: (B, E) u, vectors of a batch.
        second: (B, E) v, of the same sentences with other dropout.
        temperature: τ.

    Source: Gao, Yao and Chen, "SimCSE", https://arxiv.org/abs/2104.08821; https://kexue.fm/archives/8348.
    """
    cosines = F.normalize(first) @ F.normalize(second).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(first), device=first.device))


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return ½ (KL(p‖q) + KL(q‖p)) of every row: (N,), at least 0.

    Args:
        first: (N, C) logits of p; -inf where an answer is not possible.
        second: (N, C) logits of q, -inf at the same answers.
    """
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    possible = first > -torch.inf
    difference = torch.where(possible, p, 0) - torch.where(possible, q, 0)
    return ((p.exp() - q.exp()) * difference).sum(-1) / 2
