"""Our encoder with one part exchanged for what BERT has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kexue_train.batches.dataset import SampleDataset
from kexue_train.model import RoFormerV2ForPreTraining

_BERT_DEVIATION = 0.02


class LearntPositions(nn.Module):
    """The embeddings with a learnt vector for each position, in place of rotations."""

    def __init__(self, embeddings: Any, num_positions: int) -> None:
        super().__init__()
        self.inner = embeddings
        self.position_embeddings = nn.Embedding(num_positions, embeddings.word_embeddings.embedding_dim)
        self.position_ids: Tensor | None = None
        """Of the next forward."""

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that the word head shares."""
        table: nn.Embedding = self.inner.word_embeddings
        return table

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, _: None = None) -> Tensor:
        """[B, S] -> [B, S, E]."""
        words, segments = self.word_embeddings(input_ids), self.inner.token_type_embeddings(token_type_ids)
        embedded: Tensor = self.inner.norm(words + segments + self.position_embeddings(self.position_ids))
        return embedded


def learn_positions(model: RoFormerV2ForPreTraining) -> None:
    """Take the rotations away and learn a vector for each position instead."""
    encoder = model.roformer
    learnt = LearntPositions(encoder.embeddings, model.config.max_position_embeddings)
    model._init_weights(learnt.position_embeddings)
    encoder.embeddings = learnt

    def keep_positions(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        learnt.position_ids = kwargs["position_ids"]
        return args, kwargs | {"position_ids": torch.zeros_like(kwargs["position_ids"])}  # turned by 0

    encoder.register_forward_pre_hook(keep_positions, with_kwargs=True)


@torch.no_grad()
def draw_as_bert(model: RoFormerV2ForPreTraining) -> None:
    """Draw all weights anew with the deviation that BERT has at every width and depth."""
    for weight in model.parameters():
        weight.normal_(0, _BERT_DEVIATION)


class SinglePieces:
    """Rows in which each piece counts as a word, so that pieces are hidden one by one."""

    def __init__(self, dataset: SampleDataset) -> None:
        self._dataset = dataset

    def take(self, rows: Any) -> dict[str, Any]:
        """See ``SampleDataset.take``."""
        columns = self._dataset.take(rows)
        columns["word_starts"][:] = True
        return columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)
