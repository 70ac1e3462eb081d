"""What the lines of metrics say of a training: pure functions of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kexue_train.metrics.fields import (
    CHOICE,
    PHASE,
    PHASE_FIELDS,
    SOURCE_ACCURACY,
    SOURCE_LOSS,
    SOURCE_PREDICTIONS,
    TASK_ACCURACY,
    TASK_LABELS,
    TASK_LOSS,
)
from kexue_train.metrics.heads import HEADS, MLM, Head
from kexue_train.train.checkpoint import TrainerState
from kexue_train.train.config import TrainConfig
from kexue_train.train.monitor.meter import Totals
from kexue_train.train.phases import Phase
from kexue_train.train.precision import ChosenPrecision


def phase_values(phase: Phase) -> dict[str, int]:
    """Return the number of the phase and its sizes."""
    return {PHASE.key: phase.number} | {field.key: getattr(phase, field.key) for field in PHASE_FIELDS[1:]}


def start_values(
    train: TrainConfig, phase: Phase, precision: ChosenPrecision, *, world_size: int, device: str
) -> dict[str, Any]:
    """Return on what a training starts or resumes, and with what."""
    return {
        "world_size": world_size,
        "engine": train.compute.engine,
        "zero_stage": train.compute.zero_stage,
        "device": device,
        "precision": precision.name,
        "recompute": train.compute.model_dump(mode="json")["recompute"],
        **phase_values(phase),
        **({CHOICE.key: precision.reason} if precision.reason else {}),
    }


def training_values(
    state: TrainerState,
    phase: Phase,
    totals: Totals,
    *,
    loss: float | None,
    lr: float,
    epoch: float,
    seconds: float,
) -> dict[str, Any]:
    """Return progress, scores and load of the steps since the last line.

    Args:
        state: After the last of the steps.
        phase: The phase of the last step.
        totals: Sums over the steps and all ranks.
        loss: Their total loss in nats; None if nothing was predicted.
        lr: Learning rate of the last step.
        epoch: Passes over the samples of the phase's length so far.
        seconds: Time spent training so far, over all starts.
    """
    scores = values_of_heads(totals.scores, HEADS)
    counts = {head.counted for head in HEADS}
    return {
        "micro_step": state.micro_step,
        "epoch": epoch,
        "rows": phase.all_rows(state.step),
        "tokens": state.tokens,
        "loss": loss or 0.0,
        **{key: value for key, value in scores.items() if key not in counts},
        "lr": lr,
        "seconds": seconds,
        "data_wait": totals.data_wait,
        "memory_bytes": totals.memory_bytes,
        "memory_share": totals.memory_share,
    }


def values_of_heads(scores: dict[str, float], heads: Iterable[Head]) -> dict[str, float]:
    """Return the scores that are of ``heads``, in their order there."""
    keys = {key for head in heads for key in (head.loss_key, head.accuracy_key, head.counted)}
    return {key: value for key, value in scores.items() if key in keys}


def source_values(scores: dict[str, float]) -> dict[str, float]:
    """Return what a line on a source of a mixture says of its held-out predictions; nothing if there were none."""
    if MLM.counted not in scores:
        return {}
    keys = {SOURCE_LOSS: MLM.loss_key, SOURCE_ACCURACY: MLM.accuracy_key, SOURCE_PREDICTIONS: MLM.counted}
    return {metric.key: scores[key] for metric, key in keys.items()}


def task_values(head: Head, scores: dict[str, float]) -> dict[str, float]:
    """Return what a line on a labelled task says of its scores; nothing if it had no label."""
    if head.counted not in scores:
        return {}
    keys = {TASK_LOSS: head.loss_key, TASK_ACCURACY: head.accuracy_key, TASK_LABELS: head.counted}
    return {metric.key: scores[key] for metric, key in keys.items()}
