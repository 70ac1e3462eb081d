"""What cosines are trained for."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

COSENT_SCALE = 20.0
AM_SCALE, AM_MARGIN = 30.0, 0.35


def cosent_loss(cosines: Tensor, scores: Tensor, scale: float = COSENT_SCALE) -> Tensor:
    """log(1 + Σ exp(λ (cos_l - cos_m))) over all ordered pairs with score_m > score_l: a scalar, at least 0.

    Only the order of the scores counts, as for Spearman's correlation. 0 where all scores are equal.

    Args:
        cosines: (B,) of the pairs of a batch, or any other measure of likeness.
        scores: (B,), the more, the more alike.
        scale: λ.

    Source: https://kexue.fm/archives/8847.
    """
    differences = scale * (cosines[None, :] - cosines[:, None])  # [m, l]
    wrong = differences.masked_fill(scores[:, None] <= scores[None, :], -torch.inf)
    return torch.cat([wrong.flatten(), wrong.new_zeros(1)]).logsumexp(0)


def am_softmax_loss(cosines: Tensor, labels: Tensor, scale: float = AM_SCALE, margin: float = AM_MARGIN) -> Tensor:
    """Mean of log(1 + Σ_{i≠y} exp(s (cos_i + m - cos_y))): the right class has to lead by the margin.

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
