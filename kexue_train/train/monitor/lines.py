"""What the lines of metrics say of a training: pure functions of its parts."""

from __future__ import annotations

from typing import Any

from kexue_train.metrics.fields import PHASE, PHASE_FIELDS
from kexue_train.metrics.heads import HEADS
from kexue_train.train.checkpoint import TrainerState
from kexue_train.train.config import TrainConfig
from kexue_train.train.monitor.meter import Totals
from kexue_train.train.phases import Phase


def phase_values(phase: Phase) -> dict[str, int]:
    """Return the number of the phase and its sizes."""
    return {PHASE.key: phase.number} | {field.key: getattr(phase, field.key) for field in PHASE_FIELDS[1:]}


def start_values(train: TrainConfig, phase: Phase, *, world_size: int, device: str) -> dict[str, Any]:
    """Return on what a training starts or resumes, and with what."""
    return {
        "world_size": world_size,
        "engine": train.compute.engine,
        "zero_stage": train.compute.zero_stage,
        "device": device,
        "precision": train.precision,
        "recompute": train.compute.model_dump(mode="json")["recompute"],
        **phase_values(phase),
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
    counts = {head.counted for head in HEADS}
    return {
        "micro_step": state.micro_step,
        "epoch": epoch,
        "rows": phase.all_rows(state.step),
        "tokens": state.tokens,
        "loss": loss or 0.0,
        **{key: value for key, value in totals.scores.items() if key not in counts},
        "lr": lr,
        "seconds": seconds,
        "data_wait": totals.data_wait,
        "memory_bytes": totals.memory_bytes,
        "memory_share": totals.memory_share,
    }
