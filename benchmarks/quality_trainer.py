"""A peer in the ``Trainer`` of transformers, on the micro-batches of the plain loop, to show what this loop costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.quality_contenders import Contender
from benchmarks.quality_learners import Task
from benchmarks.quality_training import Point, multiplier, points, prepared_heldout, score
from benchmarks.run_store import Outcome
from benchmarks.sample_batches import training_batches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.optim.library import build_library_optimizer
from kexue_train.optim.param_groups import build_param_groups
from kexue_train.train.data import Tensors


def train_with_trainer(dataset: SampleDataset, task: Task, contender: Contender, lr: float, seed: int) -> Outcome:
    """Train as ``quality_training.train`` does, in the loop of transformers; the same outcome."""
    torch.manual_seed(seed)
    learner = contender.make(task, dataset)
    groups = build_param_groups(learner.model)
    optimizer = build_library_optimizer("adamw", groups, lr=lr, weight_decay=contender.rule.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: multiplier(task, step + 1))
    stream = _Stream(learner.prepare, dataset, task, seed)
    heldout = prepared_heldout(learner, dataset, task)
    watch = _Watch(stream, task, lambda: score(learner, heldout, task))
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=1, max_steps=task.steps, max_grad_norm=0.0, seed=seed,
            bf16=task.precision == "bf16", logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(
            learner.model, arguments, train_dataset=stream, data_collator=lambda items: items[0],
            optimizers=(optimizer, schedule), callbacks=[watch],
        ).train()  # fmt: skip
    return {"curve": watch.curve, "parameters": sum(p.numel() for p in learner.model.parameters())}


class _Stream(IterableDataset[Tensors]):
    """The prepared micro-batches; ``seconds`` and ``tokens``: spent on making them, and in them."""

    def __init__(self, prepare: Any, dataset: SampleDataset, task: Task, seed: int) -> None:
        self._prepare, self._arguments = prepare, (dataset, task.steps, task.rows, seed)
        self.seconds, self.tokens = 0.0, []

    def __iter__(self) -> Iterator[Tensors]:
        start = time.process_time()
        for batch in training_batches(*self._arguments):
            prepared = self._prepare(batch)
            self.tokens.append(int((batch["sequence_ids"] > 0).sum()))
            self.seconds += time.process_time() - start
            yield prepared
            start = time.process_time()


class _Watch(TrainerCallback):
    """Scores the encoder on the way, and counts processor seconds without making batches and scoring."""

    def __init__(self, stream: _Stream, task: Task, score: Any) -> None:
        self._stream, self._points, self._score = stream, points(task), score
        self.curve: list[Point] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._start, self._scoring = time.process_time() - self._stream.seconds, 0.0

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Score after some of the steps."""
        if state.global_step in self._points:
            now = time.process_time()
            seconds = now - self._start - self._stream.seconds - self._scoring
            tokens = sum(self._stream.tokens[: state.global_step])  # one batch is made ahead
            self.curve.append((state.global_step, tokens, seconds, *self._score()))
            self._scoring += time.process_time() - now
