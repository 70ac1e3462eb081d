"""Bytes per parameter that are alive around a step: weights, states, gradients, and what the step needs beside them.

Counted is every allocation of the process, in a window of several micro-batches after the first step has made the
states. Micro-batches are one row of 16 tokens, so that activations hardly count.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.encoder_cost import allocated
from benchmarks.encoder_data import MicroBatch, made_up_rows, micro_batches
from benchmarks.encoder_models import OURS, Size
from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.library import build_library_optimizer
from kexue_train.optim.options import Options
from kexue_train.optim.rules import AdamWRule
from kexue_train.train.distributed import join_process_group
from kexue_train.train.engine import start_deepspeed

_TOKENS = 16
_BUCKET = 50_000_000
"""Elements that DeepSpeed reduces at once, as in our own runs; its default would add a gigabyte."""
_ADAMW = {"lr": 1e-4, "weight_decay": 0.01}


class Trainer:
    """What takes micro-batches and steps."""

    def __init__(self, loss: _Loss, optimizer: torch.optim.Optimizer, k: int, batches: Iterator[MicroBatch]) -> None:
        self._loss, self._optimizer, self._k, self._batches = loss, optimizer, k, batches
        self.parameters = sum(p.numel() for p in loss.parameters())
        self.largest = max(p.numel() * p.element_size() for p in loss.parameters())

    def backward(self) -> None:
        """Forward and backward of the next micro-batch, in bf16 under autocast."""
        batch = next(self._batches)
        with torch.autocast(batch.packed["input_ids"].device.type, torch.bfloat16):
            loss = self._loss(batch)
        (loss / self._k).backward()

    def end_micro_batch(self, *, is_last: bool) -> None:
        """Whatever has to be called after backward."""
        if isinstance(self._optimizer, HiddenAccumulation):
            self._optimizer.step()
        elif is_last:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)


class _DeepSpeedTrainer(Trainer):
    """AdamW on bf16 weights with fp32 masters, as DeepSpeed keeps them."""

    def __init__(self, loss: _Loss, stage: int, k: int, batches: Iterator[MicroBatch]) -> None:
        optimizer = build_library_optimizer("adamw", build_param_groups(loss), **_ADAMW)
        super().__init__(loss, optimizer, k, batches)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": k,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": _BUCKET},
            "steps_per_print": 10**9,
        }
        backend = "nccl" if next(loss.parameters()).is_cuda else "gloo"
        join_process_group(backend, hang_timeout=600, alone=True)
        with tempfile.TemporaryDirectory() as folder:
            self._engine = start_deepspeed(loss, optimizer, config, Path(folder))
        self.largest = max(p.numel() * 2 for p in loss.parameters())

    def backward(self) -> None:
        self._engine.backward(self._engine(next(self._batches)))

    def end_micro_batch(self, *, is_last: bool) -> None:  # noqa: ARG002  # DeepSpeed counts itself
        self._engine.step()


class _Loss(nn.Module):
    """The encoder as a module whose forward is the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        return OURS.loss(self.model, batch)


Start = Callable[[_Loss, int, Iterator[MicroBatch]], Trainer]


def _with(build: Callable[[_Loss, int], torch.optim.Optimizer], dtype: torch.dtype = torch.float32) -> Start:
    def start(loss: _Loss, k: int, batches: Iterator[MicroBatch]) -> Trainer:
        loss.to(dtype)
        return Trainer(loss, build(loss, k), k, batches)

    return start


def _library(name: Any) -> Start:
    return _with(lambda loss, _: build_library_optimizer(name, build_param_groups(loss), **_ADAMW))


def _their_tiger(loss: _Loss, _: int) -> torch.optim.Optimizer:
    import pytorch_optimizer  # noqa: PLC0415  # seconds to import

    return pytorch_optimizer.Tiger(loss.parameters())


def _tiger(loss: _Loss, k: int, **options: Any) -> Tiger:
    return Tiger(build_param_groups(loss), accumulation_steps=k, options=Options(**options))


def _hidden_adamw(loss: _Loss, k: int) -> HiddenAccumulation:
    defaults = {"lr": 1e-4, "beta": 0.9, "weight_decay": 0.01}
    return HiddenAccumulation(build_param_groups(loss), AdamWRule(), defaults, accumulation_steps=k)


CONTENDERS: dict[str, Start] = {
    "AdamW (torch, fused), autocast": _library("adamw"),
    "AdamW, bf16 and fp32 masters (DeepSpeed, ZeRO 0)": lambda loss, k, b: _DeepSpeedTrainer(loss, 0, k, b),
    "AdamW, bf16 and fp32 masters (DeepSpeed, ZeRO 1, one rank)": lambda loss, k, b: _DeepSpeedTrainer(loss, 1, k, b),
    "Lion (pytorch_optimizer), autocast": _library("lion"),
    "Tiger (pytorch_optimizer), autocast": _with(_their_tiger),
    "AdamW in its moments, autocast": _with(_hidden_adamw),
    "Tiger, gradient, autocast": _with(lambda loss, k: _tiger(loss, k, accumulate="gradient")),
    "Tiger, momentum, autocast": _with(_tiger),
    "Tiger, bf16 states": _with(lambda loss, k: _tiger(loss, k, bf16_states=True), torch.bfloat16),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes alive, of one contender."""

    title: str
    parameters: int
    backward_peak: int
    """At most, in the last backward of a window."""
    after_backward: int
    """When it has ended."""
    step_peak: int
    """At most, in the step after it."""
    largest_gradient: int
    """Of one tensor."""


def measure_all(size: Size, vocab: int, k: int, device: torch.device) -> Iterator[Result]:
    """All contenders, each in a process of its own."""
    # A forked process has the libraries at once. CUDA does not outlive a fork, and an import may have asked for it.
    processes = get_context("spawn" if device.type == "cuda" else "forkserver")
    processes.set_forkserver_preload([__name__])
    for title in CONTENDERS:
        with ProcessPoolExecutor(1, processes) as process:
            yield process.submit(measure, title, size, vocab, k, device).result()


def measure(title: str, size: Size, vocab: int, k: int, device: torch.device) -> Result:
    """One contender: a window to make the states, then a second one up to its step."""
    made: list[Trainer] = []

    def until_last_backward() -> None:
        batch = next(micro_batches(made_up_rows(1, seq_len=_TOKENS, vocab_size=vocab), 1, _TOKENS, device))
        loss = _Loss(OURS.build(size, vocab, _TOKENS, 0.0).to(device))
        made.append(CONTENDERS[title](loss, k, itertools.repeat(batch)))
        for number in range(2 * k - 1):
            made[0].backward()
            made[0].end_micro_batch(is_last=number == k - 1)

    before = allocated(until_last_backward, device).left
    trainer = made[0]
    backward = allocated(trainer.backward, device)
    step = allocated(lambda: trainer.end_micro_batch(is_last=True), device)
    alive = before + backward.left
    return Result(title, trainer.parameters, before + backward.peak, alive, alive + step.peak, trainer.largest)


def memory_table(results: Sequence[Result]) -> Table:
    """Bytes per parameter."""
    table = Table("optimizer", "after backward", "in the step", "in backward", "largest gradient")
    for r in results:
        figures = r.after_backward, r.step_peak, r.backward_peak, r.largest_gradient
        table.add_row(r.title, *(f"{figure / r.parameters:.2f}" for figure in figures))
    return table
