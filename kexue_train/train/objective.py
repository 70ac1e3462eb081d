"""What is minimised: the weighted losses of all heads over one micro-batch, on the labelled slots only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import assert_never

import torch
from torch import Tensor, nn

from kexue_train.batches.collate import PREDICTION
from kexue_train.batches.mixed import TrainingData
from kexue_train.batches.source_labels import SOURCE_LABELS
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.train.config import LossUnit
from kexue_train.train.data import Tensors, to_device
from kexue_train.train.distributed import sum_over_ranks
from kexue_train.train.heads import TrainedHead
from kexue_train.train.weighting.scheme import TaskWeights

Heads = tuple[TrainedHead, ...]
NUM_SUMS = len(LabelScores._fields)


class PretrainingObjective(nn.Module):
    """The model with its loss, so that an engine that wraps modules sees one forward.

    The loss divides by *expected* counts, constants of the sample set. So the gradient of a step is the sum over its
    rows, the same however the rows are cut into micro-batches and ranks; a mean per micro-batch would weigh a masked
    word more where few are masked (https://github.com/huggingface/transformers/issues/24725).

    Args:
        model: The model.
        heads: Its heads that are trained.
        autocast: The type of matrix products, if it is another than that of the weights.
        has_graphs: Whether layers are replayed as CUDA graphs, whose results are then good until the next forward.
        calls_all_heads: Whether heads that a micro-batch has no labels of are called too, on no states. Then all ranks
            call the same layers in one order and every parameter gets a gradient, which ZeRO's collectives need.

    Attributes:
        expected: Mean number of labels in a micro-batch over the whole sample set, for each head.
        units: The loss of each head that counts as 1, in nats (https://kexue.fm/archives/8870); None: its own value,
            micro-batch by micro-batch.
        weights: What multiplies the loss of each micro-batch in training; None: nothing does.
    """

    def __init__(
        self,
        model: RoFormerV2ForPreTraining,
        heads: Heads,
        *,
        autocast: torch.dtype | None = None,
        has_graphs: bool = False,
        calls_all_heads: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.heads, self.autocast, self.has_graphs = model, heads, autocast, has_graphs
        self.calls_all_heads = calls_all_heads
        self.expected: Sequence[float] = [1.0] * len(heads)
        self.units: Sequence[float] | None = [1.0] * len(heads)
        self.weights: TaskWeights | None = None

    def scale_to(self, dataset: TrainingData, micro_batch_size: int, unit: LossUnit = "nat") -> None:
        """Set what divides the losses: for micro-batches of so many rows of ``dataset``."""
        self.expected = [head.mean_per_row(dataset) * micro_batch_size for head in self.heads]
        self.units = loss_units(unit, self.heads, dataset)

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Compute the loss to differentiate, and the ``LabelScores`` of the heads behind it, stacked: [heads, 3].

        Of held-out rows of a mixture, those of the predictions of each source follow them: [heads + sources, 3].

        Args:
            batch: The tensors of a ``Batch``, whose shapes are the same in every micro-batch; or of a micro-batch of a
                labelled task. The heads whose labels it has are trained; the sums of the others are 0.
        """
        if self.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        present = self._present(batch)
        called = list(range(len(self.heads))) if self.calls_all_heads else present
        heads = [self.heads[number] for number in called]
        with self._precision(batch["input_ids"].device.type):
            hidden = self.model.roformer(
                batch["input_ids"],
                sequence_ids=batch["sequence_ids"],
                sequence_starts=batch["sequence_starts"],
                position_ids=batch["position_ids"],
                token_type_ids=batch["token_type_ids"],
            ).last_hidden_state.flatten(0, 1)
            nothing = hidden[:0], batch["input_ids"].new_empty(0)
            found = [
                (hidden.index_select(0, batch[head.target.slots]), batch[head.target.labels])
                if number in present
                else nothing
                for number, head in zip(called, heads, strict=True)
            ]
            scores = [head.score(self.model, state, labels) for head, (state, labels) in zip(heads, found, strict=True)]
            by_source = self._score_sources(batch, hidden)
        if not called:  # rows of a rank that has none left to score
            return hidden.sum() * 0, hidden.new_zeros(len(self.heads), NUM_SUMS)
        means = [score.loss / (self.expected[n] or 1.0) for n, score in zip(called, scores, strict=True)]
        units = None if self.units is None else [self.units[number] for number in called]
        sums = torch.stack([torch.stack(score) for score in scores]).detach()
        if len(called) < len(self.heads):
            sums = sums.new_zeros(len(self.heads), NUM_SUMS).index_copy(0, _index(called, sums.device), sums)
        sums = torch.cat([sums, by_source]) if by_source is not None else sums
        loss = combine(means, heads, units)
        if self.weights is not None and self.training:
            loss = loss * self.weights.weight(self.heads[present[0]].task, loss.detach())
        return loss, sums

    def trained_by(self, batch: Tensors) -> list[nn.Parameter]:
        """Return the parameters that a micro-batch trains: the encoder's, and those of heads that it has labels of."""
        trained: list[nn.Module] = [
            self.model.roformer,
            *(self.heads[number].layer(self.model) for number in self._present(batch)),
        ]
        return [param for module in trained for param in module.parameters()]

    def _score_sources(self, batch: Tensors, hidden: Tensor) -> Tensor | None:
        """Return the sums of the predictions of each source, [sources, 3], if the batch has labels of them.

        All sources are scored on the same states, so that shapes and calls are the same on every rank.
        """
        if SOURCE_LABELS not in batch:
            return None
        head = next(head for head in self.heads if head.target == PREDICTION)
        states = hidden.index_select(0, batch[PREDICTION.slots])
        scores = [torch.stack(head.score(self.model, states, labels)) for labels in batch[SOURCE_LABELS]]
        return torch.stack(scores).detach()

    def _present(self, batch: Tensors) -> list[int]:
        return [number for number, head in enumerate(self.heads) if head.target.slots in batch]

    def _precision(self, device_type: str) -> AbstractContextManager[object]:
        return torch.autocast(device_type, self.autocast) if self.autocast else nullcontext()


def _index(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)


def combine(losses: Sequence[Tensor], heads: Sequence[TrainedHead], units: Sequence[float] | None) -> Tensor:
    """Return the weighted sum of mean losses in nats, each in its unit; a loss of 0 counts as 0 in any unit."""
    if units is None:
        parts = [head.weight * _relative(loss) for head, loss in zip(heads, losses, strict=True)]
    else:
        parts = [head.weight * loss / unit for head, loss, unit in zip(heads, losses, units, strict=True)]
    return sum(parts[1:], start=parts[0])


def _relative(loss: Tensor) -> Tensor:
    """Return the loss over its value: always 1, and its gradient is that of log(loss)."""
    value = loss.detach()
    return loss / value.where(value > 0, 1)


def prior_losses(heads: Heads, dataset: TrainingData) -> dict[str, float]:
    """Return the loss in nats of guessing by frequency, for each task in the order of its first head."""
    losses: dict[str, float] = {}
    for head in heads:
        losses[head.task] = losses.get(head.task, 0.0) + head.weight * head.prior_loss(dataset)
    return losses


def loss_units(kind: LossUnit, heads: Heads, dataset: TrainingData) -> list[float] | None:
    """Return the units that ``train.objective.loss_unit`` names, the same on every rank."""
    match kind:
        case "nat":
            return [1.0] * len(heads)
        case "initial":
            return [head.initial_loss(dataset) for head in heads]
        case "prior":
            return [head.prior_loss(dataset) for head in heads]
        case "online":
            return None
        case _:
            assert_never(kind)


def mean_scores(sums: Iterable[Sequence[float]], heads: Heads) -> dict[str, float]:
    """Return means and counts from the summed ``LabelScores`` of each head; one without a single label is left out."""
    scores: dict[str, float] = {}
    for trained, (loss, correct, count) in zip(heads, sums, strict=True):
        if count:
            head = trained.head
            scores |= {head.loss_key: loss / count, head.accuracy_key: correct / count, head.counted: int(count)}
    return scores


def task_losses(scores: dict[str, float], heads: Heads) -> dict[str, float]:
    """Return the weighted loss in nats of each task; a task whose first head had no label is left out."""
    losses: dict[str, float] = {}
    for head in heads:
        loss = scores.get(head.head.loss_key)
        if head.task in losses:
            losses[head.task] += head.weight * (loss or 0.0)
        elif loss is not None and _first_head(heads, head.task) is head:
            losses[head.task] = head.weight * loss
    return losses


def _first_head(heads: Heads, task: str) -> TrainedHead:
    return next(head for head in heads if head.task == task)


def total_loss(scores: dict[str, float], heads: Heads) -> float | None:
    """Return the loss in nats, tasks weighed by their shares; None if none had a label."""
    losses = task_losses(scores, heads)
    shares = {head.task: head.share for head in heads if head.task in losses}
    return sum(shares[task] * loss for task, loss in losses.items()) / sum(shares.values()) if losses else None


@torch.no_grad()
def validate(
    objective: PretrainingObjective, batches: Iterable[Tensors], device: torch.device, sources: Sequence[str] = ()
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return means over the held-out rows of all ranks, without dropout; masks are fixed, so values compare over time.

    Those of the predictions of each of ``sources`` come second, by its name. A collective call.
    """
    objective.eval()
    num_heads = len(objective.heads)
    sums = torch.zeros(num_heads + len(sources), NUM_SUMS, device=device)
    for batch in batches:
        found = objective(to_device(batch, device))[1]
        sums[: len(found)] += found
    means = sum_over_ranks(sums).tolist()
    words = [head for head in objective.heads if head.target == PREDICTION][:1]
    by_source = {name: mean_scores([own], tuple(words)) for name, own in zip(sources, means[num_heads:], strict=True)}
    return mean_scores(means[:num_heads], objective.heads), by_source
