"""Pairs as a model reads them: what is trained, and how both abilities are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.paraphrase.losses import next_token_slots, similarity_loss, writing_loss
from kexue_train.downstream.finetune.paraphrase.pairs import Pair, Pairs
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.results.paraphrase import ParaphraseScores
from kexue_train.downstream.sequences import Reader

_AT_ONCE = 256


class Terms(NamedTuple):
    """What one forward pass of a batch gives."""

    writing: Tensor
    similarity: Tensor
    num_targets: int
    num_right: int
    """Next tokens that were the likeliest."""
    vectors: Tensor
    """[CLS] of every sentence: (2n, E), partners beside each other."""


@dataclass(frozen=True)
class ParaphraseProblem:
    """The sum of both losses on pairs, each pair in both directions."""

    loaded: LoadedHead
    train: Pairs
    dev: Pairs
    scale: float
    batch_size: int
    reader: Reader

    def loss(self, indices: Indices) -> Tensor:
        """Return the loss of a batch of training pairs."""
        terms = self.terms([self.train.sides[index] for index in indices])
        return terms.writing + terms.similarity

    def terms(self, pairs: list[Pair]) -> Terms:
        """Compute both losses: rows 2k and 2k + 1 are ``[CLS] a [SEP] b [SEP]`` and ``[CLS] b [SEP] a [SEP]``."""
        rows = [segments for first, second in pairs for segments in ((first, second), (second, first))]
        segments = [self.reader.join(*row) for row in rows]
        order, logits, targets, vectors = [], [], [], []
        for indices, batch in self.reader.in_batches(segments, self.loaded.device):  # similar lengths: little padding
            states = self.loaded.model.roformer(**batch, return_dict=True).last_hidden_state
            predicts = next_token_slots(batch["token_type_ids"])
            logits.append(self.loaded.model.cls.predictions(states[:, :-1][predicts]))
            targets.append(batch["input_ids"][:, 1:][predicts])
            vectors.append(states[:, 0])
            order.append(indices)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.loaded.device)
        return self._terms(rows, torch.cat(logits), torch.cat(targets), torch.cat(vectors)[back])

    def _terms(self, rows: list[Pair], logits: Tensor, targets: Tensor, vectors: Tensor) -> Terms:
        texts = torch.from_numpy(_numbers([tuple(first.tolist()) for first, _ in rows])).to(vectors.device)
        return Terms(
            writing=writing_loss(logits, targets),
            similarity=similarity_loss(vectors, texts, self.scale),
            num_targets=len(targets),
            num_right=int((logits.argmax(-1) == targets).sum()),
            vectors=vectors,
        )

    @torch.no_grad()
    def score(self) -> ParaphraseScores:
        """Score the held-out pairs, the model in evaluation mode."""
        found = list(self._dev_terms())
        targets = sum(terms.num_targets for terms in found)
        sizes = [len(terms.vectors) for terms in found]
        texts = _numbers([tuple(side.tolist()) for pair in self.dev.sides for side in pair])
        return ParaphraseScores(
            writing_loss=sum(float(terms.writing) * terms.num_targets for terms in found) / targets,
            next_token_accuracy=sum(terms.num_right for terms in found) / targets,
            similarity_loss=float(np.average([float(terms.similarity) for terms in found], weights=sizes)),
            retrieval_accuracy=found_partners(torch.cat([terms.vectors for terms in found]), torch.from_numpy(texts)),
        )

    def _dev_terms(self) -> Iterator[Terms]:
        pieces = max(1, round(len(self.dev.sides) / self.batch_size))
        for indices in np.array_split(np.arange(len(self.dev.sides)), pieces):
            yield self.terms([self.dev.sides[index] for index in indices])


def found_partners(vectors: Tensor, texts: Tensor) -> float:
    """Return the share of sentences whose nearest other sentence by cosine is their partner.

    Copies of a sentence or of its partner do not count; another sentence that is as near as the partner comes first, so
    equal vectors earn nothing.

    Args:
        vectors: (2n, E); rows 2k and 2k + 1 are partners.
        texts: (2n,) numbers, equal where the sentences are.
    """
    unit, texts = F.normalize(vectors.float()), texts.to(vectors.device)
    rows = torch.arange(len(unit), device=unit.device)
    partner, right = rows ^ 1, 0
    for mine in torch.split(rows, _AT_ONCE):
        cosines = unit[mine] @ unit.T
        best = cosines.gather(1, partner[mine][:, None])
        is_copy = (texts[mine][:, None] == texts) | (texts[partner[mine]][:, None] == texts)
        right += int(((cosines >= best) & ~is_copy).any(1).logical_not().sum())
    return right / len(unit)


def _numbers(texts: list[tuple[int, ...]]) -> np.ndarray:
    """Return a number for each text, equal where the texts are: (n,) int64."""
    number: dict[tuple[int, ...], int] = {}
    return np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
