"""What is minimised: masked-word plus next-sentence loss of one micro-batch, on the predicted slots only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.linear_cross_entropy import linear_cross_entropy
from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.train.balance import LossUnits, balance


class LossTerms(NamedTuple):
    """Sums over one micro-batch, fp32 scalars; divide sums over many micro-batches, never average means."""

    mlm_loss: Tensor
    mlm_correct: Tensor
    mlm_count: Tensor
    nsp_loss: Tensor
    nsp_correct: Tensor
    nsp_count: Tensor


class ExpectedCounts(NamedTuple):
    """Mean numbers per micro-batch over the whole sample set; the divisors of the training loss."""

    predictions: float
    pairs: float


class PretrainingObjective(nn.Module):
    """The model with its loss, so that an engine that wraps modules sees one forward.

    The loss divides by *expected* counts, constants of the sample set. So the gradient of a step is the sum over its
    rows, the same however the rows are cut into micro-batches and ranks; a mean per micro-batch would weigh a masked
    word more where few are masked (https://github.com/huggingface/transformers/issues/24725).
    """

    def __init__(
        self,
        model: RoFormerV2ForPreTraining,
        expected: ExpectedCounts,
        *,
        nsp_weight: float,
        autocast: torch.dtype | None,
        units: LossUnits | None = LossUnits(),  # noqa: B008  # a named tuple
    ) -> None:
        super().__init__()
        self.model = model
        self.expected = expected
        self.nsp_weight = nsp_weight
        self.autocast = autocast
        self.units = units

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, LossTerms]:
        """The loss to differentiate and the sums behind it.

        Args:
            batch: The tensors of a ``Batch``; their shapes are the same in every micro-batch.
        """
        with self._precision(batch["input_ids"].device.type):
            hidden = self.model.roformer(
                batch["input_ids"],
                sequence_ids=batch["sequence_ids"],
                position_ids=batch["position_ids"],
                token_type_ids=batch["token_type_ids"],
            ).last_hidden_state.flatten(0, 1)
            words, pairs = (hidden.index_select(0, batch[name]) for name in ("prediction_slots", "pair_slots"))
            mlm = _score_words(self.model.cls.predictions, words, batch["prediction_labels"])
            nsp = _score(self.model.cls.next_sentence, pairs, batch["pair_labels"])
        means = mlm[0] / self.expected.predictions, nsp[0] / (self.expected.pairs or 1.0)
        loss = balance(*means, self.units, nsp_weight=self.nsp_weight)
        return loss, LossTerms(*(term.detach() for term in (*mlm, *nsp)))

    def _precision(self, device_type: str) -> AbstractContextManager[object]:
        return torch.autocast(device_type, self.autocast) if self.autocast else nullcontext()


def _score_words(head: Any, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_score``, for the head with the projection onto the vocabulary, whose logits never exist whole."""
    return linear_cross_entropy(head.features(hidden), head.decoder.weight, labels)


def _score(head: nn.Module, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ cross-entropy, number right, number) over the slots [N, E] with a label; zeros if there are none."""
    logits = head(hidden).float()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum().float(), (labels != IGNORE_INDEX).sum().float()
