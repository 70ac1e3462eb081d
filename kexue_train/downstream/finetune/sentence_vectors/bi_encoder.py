"""An encoder with a pooling and, for some losses, a head on its vectors."""

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
