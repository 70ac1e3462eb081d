"""Pairs with a score of similarity: CoSENT learns their order, Sentence-BERT their classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences
from kexue_train.downstream.evaluate.sentence_vectors.score_set import pair_cosines, word_cosines
from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.losses import cosent_loss
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder, Head
from kexue_train.downstream.finetune.tasks.splits import Splits


class SimilarityProblem:
    """A set of pairs as a model reads it; scored by Spearman's correlation of cosines and scores."""

    metric = "spearman"

    def __init__(
        self, splits: Splits, tokenizer: Any, max_length: int, loss: Literal["cosent", "sentence-bert"]
    ) -> None:
        self.pairs = {name: Pairs.of(records) for name, records in splits.by_name.items()}
        self.sentences = {
            name: Sentences.read(tokenizer, pairs.sentences, max_length) for name, pairs in self.pairs.items()
        }
        self.kind = loss
        self.num_examples = len(splits.train)
        # A class per whole score: graded scores are rounded, .5 up.
        self.classes, self.class_of = np.unique(np.floor(self.pairs["train"].scores + 0.5), return_inverse=True)
        self.head: Head = "none" if loss == "cosent" else "comparison"
        self.num_labels = len(self.classes)

    def loss(self, model: BiEncoder, indices: Indices) -> Tensor:
        """Return the loss of a batch of training pairs."""
        pairs, ids = self.pairs["train"], self.sentences["train"].ids
        both = model.vectors([ids[i] for i in pairs.indices[indices].T.ravel()])
        first, second = both[: len(indices)], both[len(indices) :]
        if self.kind == "cosent":
            return cosent_loss(F.cosine_similarity(first, second), model.on_device(pairs.scores[indices]))
        return F.cross_entropy(model.compare(first, second), model.on_device(self.class_of[indices]))

    def score(self, model: BiEncoder, split: str) -> dict[str, float]:
        """Score the cosines of a split.

        Raises:
            EvaluationError: If they, or the scores, have no order.
        """
        pairs = self.pairs[split]
        return {"spearman": spearman(pair_cosines(model.encode(self.sentences[split]), pairs.indices), pairs.scores)}

    def words(self, split: str) -> dict[str, float]:
        """Score the tf-idf vectors of words of a split.

        Raises:
            EvaluationError: If they, or the scores, have no order.
        """
        pairs = self.pairs[split]
        return {"spearman": spearman(word_cosines(pairs.sentences, pairs.indices), pairs.scores)}
