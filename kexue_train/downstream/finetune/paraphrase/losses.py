"""The two losses of SimBERT: write the second segment; find the partner among the sentences of the batch.

Source: https://kexue.fm/archives/7427.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor


def writing_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of ``logits`` (T, V) and the tokens (T,) of all second segments."""
    return F.cross_entropy(logits.float(), targets)


def next_token_slots(token_type_ids: Tensor) -> Tensor:
    """Return which slots (B, S - 1) predict a token of the second segment, the one after them: boolean.

    The last token of the first segment predicts the first of the second.
    """
    return token_type_ids[:, 1:] > 0


def similarity_loss(vectors: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Return the mean cross-entropy of finding each sentence's partner among the others of the batch, in nats.

    The logits of row i are scale · cos(v_i, v_j) for j ≠ i, and the right answer is its partner. A batch may hold a
    sentence more than once: copies of the row itself or of its partner are no wrong answers, and are left out.

    Args:
        vectors: (2n, E); rows 2k and 2k + 1 are partners.
        texts: (2n,) numbers, equal where the sentences are.
        scale: What cosines are multiplied by.
    """
    rows = torch.arange(len(vectors), device=vectors.device)
    partner = rows ^ 1
    unit = F.normalize(vectors.float())
    is_copy = (texts[:, None] == texts) | (texts[partner][:, None] == texts)
    is_left_out = is_copy & (partner[:, None] != rows)
    return F.cross_entropy((scale * (unit @ unit.T)).masked_fill(is_left_out, -torch.inf), partner)
