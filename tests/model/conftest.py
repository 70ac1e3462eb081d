"""Tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining

TINY = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}


@pytest.fixture
def tiny_config() -> RoFormerV2Config:
    """Three layers, width 48, four heads, 97 words."""
    return RoFormerV2Config(**TINY)


@pytest.fixture
def make_model() -> Callable[..., RoFormerV2ForPreTraining]:
    """A tiny model whose weights are large enough for attention to be far from uniform; evaluation mode."""

    def make(*, attention: str = "sdpa", seed: int = 0, gain: float = 3.0, **changes: Any) -> RoFormerV2ForPreTraining:
        torch.manual_seed(seed)
        config = RoFormerV2Config(**{**TINY, **changes}, attn_implementation=attention)
        model = RoFormerV2ForPreTraining(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(gain)
        return model

    return make


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """Random tokens of any shape, never padding."""

    def draw(*shape: int, seed: int = 0, vocab_size: int = TINY["vocab_size"]) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(seed).integers(1, vocab_size, shape))

    return draw
