"""The training loop: what one step does, and what is written after which steps."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from kexue_train.artifacts import Recipe
from kexue_train.counter_rng import Purpose, random_words
from kexue_train.errors import TrainingError
from kexue_train.model.modeling_roformer_v2 import set_residual_scale
from kexue_train.optim.build import set_learning_rate
from kexue_train.optim.windows import WindowedOptimizer
from kexue_train.train.checkpoint import TrainerState, save_checkpoint
from kexue_train.train.distributed import sum_over_ranks
from kexue_train.train.engine import Engine
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.metrics import MetricLogger
from kexue_train.train.objective import LossTerms, PretrainingObjective
from kexue_train.train.tensors import Tensors, to_device
from kexue_train.train.validation import means, validate

logger = logging.getLogger(__name__)


class StopRequest:
    """Set by SIGTERM; the ranks agree on it at the next line of metrics, save a checkpoint and end."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Install the handler; only a main thread may (Ray Train's workers run the loop in another)."""
        try:
            signal.signal(signal.SIGTERM, self._request)
        except ValueError:
            logger.info("not the main thread: SIGTERM ends this worker at once")

    def _request(self, *_: Any) -> None:
        self.requested = True


@dataclass
class Training:
    """Everything the loop works on; built by the worker."""

    config: JobConfig
    recipe: Recipe
    paths: TrainDir
    tokenizer: Path
    """Folder whose tokenizer files go into every checkpoint."""
    rows_per_epoch: int
    num_parameters: int
    objective: PretrainingObjective
    optimizer: WindowedOptimizer
    engine: Engine
    device: torch.device
    batches: Generator[Tensors]
    heldout: list[Tensors]
    """This rank's share of the held-out rows."""
    state: TrainerState
    metrics: MetricLogger | None = None
    """None on all ranks but 0."""
    seconds: float = 0.0
    """Time spent training, over all starts."""
    stop: StopRequest = field(default_factory=StopRequest)


class _Meter:
    """Sums over the micro-batches since the last line of metrics, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self.terms = torch.zeros(len(LossTerms._fields), device=device)
        self.tokens = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, terms: LossTerms, tokens: int) -> None:
        self.terms += torch.stack(terms)
        self.tokens += tokens


def train_loop(training: Training) -> bool:
    """Train from ``training.state`` to the last step.

    Returns:
        Whether the last step was reached; False after a stop request, with a checkpoint saved.
    """
    config, paths = training.config.train, training.paths
    meter = _Meter(training.device)
    while training.state.step < config.steps:
        step = _one_step(training, meter)
        last = step == config.steps
        stopping = False
        saving = last or step % config.checkpoint_every == 0
        if saving or step % config.log_every == 0:  # before a checkpoint, since it holds the tokens and time so far
            stopping = _log(training, meter)
            meter = _Meter(training.device)
        if last or step % config.validate_every == 0:
            scores = validate(training.objective, training.heldout, training.device)
            if training.metrics:
                training.metrics.write("validation", step, **scores)
        if saving or stopping:
            _save(training)
        meter.started += 0 if meter.tokens else time.perf_counter() - meter.started  # validating is not training
        if stopping and not last:
            logger.info("stopped on request after step %d; checkpoint in %s", step, paths.checkpoints)
            return False
    return True


def _one_step(training: Training, meter: _Meter) -> int:
    """Run the micro-batches of one step; returns the number of steps done."""
    config, state = training.config, training.state
    step = state.step + 1
    set_learning_rate(training.optimizer, config.optimizer.schedule.multiplier(step))
    set_residual_scale(training.objective, config.train.residual_scale(step))
    training.objective.train()
    for index in range(config.train.accumulation_steps):
        waiting = time.perf_counter()
        batch = next(training.batches)
        meter.waited += time.perf_counter() - waiting
        _seed_dropout(config.seed, state.micro_step + index)
        training.optimizer.saw_tokens(batch["input_ids"], batch["prediction_labels"])
        meter.add(training.engine.micro_step(to_device(batch, training.device)), int((batch["sequence_ids"] > 0).sum()))
    training.state = replace(state, step=step, micro_step=state.micro_step + config.train.accumulation_steps)
    return step


def _seed_dropout(seed: int, micro_step: int) -> None:
    """Dropout follows from (seed, micro-step, rank), so a resume needs no generator state."""
    word = int(random_words(seed, Purpose.DROPOUT, dist.get_rank(), micro_step)[0, 0])
    torch.manual_seed(word & (2**63 - 1))


def _log(training: Training, meter: _Meter) -> bool:
    """Add up over the ranks and write one line; returns whether any rank was asked to stop."""
    config, state = training.config, training.state
    elapsed = time.perf_counter() - meter.started
    counts = torch.tensor(
        [meter.tokens, meter.waited, _memory_bytes(training.device), training.stop.requested],
        dtype=torch.float64,
        device=training.device,
    )
    *sums, tokens, waited, memory, stop = sum_over_ranks(torch.cat([meter.terms.to(counts.dtype), counts])).tolist()
    training.state = replace(state, tokens=state.tokens + int(tokens))
    training.seconds += elapsed
    _check_gradients(training)
    scores = means(sums)
    loss = scores.get("mlm_loss", 0.0) + config.train.nsp_weight * scores.get("nsp_loss", 0.0)
    table = training.engine.full_parameter(training.objective.model.get_input_embeddings().weight)
    if training.metrics:
        rows = state.step * config.train.global_batch_size
        training.metrics.write(
            "train",
            state.step,
            micro_step=state.micro_step,
            epoch=rows / training.rows_per_epoch,
            rows=rows,
            tokens=training.state.tokens,
            loss=loss,
            **{name: value for name, value in scores.items() if name not in ("predictions", "pairs")},
            lr=training.optimizer.param_groups[0]["lr"],
            tokens_per_second=tokens / elapsed,
            seconds=training.seconds,
            data_wait=waited / elapsed / dist.get_world_size(),
            embedding_max=float(table.abs().max()),
            memory_bytes=int(memory),
        )
    return bool(stop > 0)


def _check_gradients(training: Training) -> None:
    """Write down tensors that had a gradient that was not finite; alike on every rank.

    Raises:
        TrainingError: If that was so in too many steps in a row.
    """
    report, allowed = training.optimizer.nonfinite_report(), training.config.optimizer.max_nonfinite_steps
    if report.steps and training.metrics:
        training.metrics.event("nonfinite", training.state.step, tensors=report.steps, in_a_row=report.in_a_row)
    if report.in_a_row >= allowed:
        raise TrainingError(
            f"gradients were NaN or infinite in {report.in_a_row} steps in a row up to step {training.state.step}, in "
            f"{', '.join(report.steps)}; allowed are fewer than optimizer.max_nonfinite_steps={allowed}. Lower "
            "optimizer.lr, or lengthen the warm-up, and start from an earlier checkpoint"
        )


def _save(training: Training) -> None:
    full = training.engine.full_tensors()
    if dist.get_rank() == 0:
        save_checkpoint(
            training.paths.checkpoints,
            training.objective.model,
            full,
            training.state,
            recipe=training.recipe,
            tokenizer=training.tokenizer,
            keep=training.config.train.keep_checkpoints,
        )
    dist.barrier()


def _memory_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else int(psutil.Process().memory_info().rss)
