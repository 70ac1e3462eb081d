"""Token states -> one vector per sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kexue_train.downstream.settings import Pooling


def pool(hidden_states: Sequence[torch.Tensor], attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector per row: (B, E), in the dtype of the states.

    Args:
        hidden_states: (B, S, E) each: the embeddings, then the output of every layer.
        attention_mask: (B, S), 1 for tokens, [CLS] and [SEP] among them, 0 for padding, which counts for nothing.
        pooling: ``cls``: the last state of the first token. ``mean``: the mean of the last states. ``first-last``: the
            mean of the mean states of the first layer and of the last.

    Source: https://kexue.fm/archives/8069; its code takes the first layer's output, not the embeddings.
    """
    last = hidden_states[-1]
    if pooling == "cls":
        return last[:, 0]
    states = last if pooling == "mean" else (hidden_states[min(1, len(hidden_states) - 1)] + last) / 2
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)
