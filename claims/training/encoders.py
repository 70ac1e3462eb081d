"""Small encoders of the library, without dropout: no row is read twice."""

from __future__ import annotations

from typing import Any

from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM

_HEAD = 64


def masked_lm(*, layers: int, hidden: int, vocab: int, **options: Any) -> RoFormerV2ForMaskedLM:
    """Return a fresh encoder with the head of masked words, weights by torch's own generator.

    Args:
        layers: How many.
        hidden: Width; heads have 64 each, or half of a smaller width, and the feed-forward layers four times the width.
        vocab: Tokens.
        **options: Of ``RoFormerV2Config``.
    """
    shape = {"num_attention_heads": max(2, hidden // _HEAD), "intermediate_size": 4 * hidden}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {**shape, **dropout, **options}
    return RoFormerV2ForMaskedLM(
        RoFormerV2Config(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, **options)
    )
