"""A training in this process that stops after every block of steps, so that others can work on the same micro-batches.

The loop is not told: between it and its engine sits one that records what passes. While the others work, the loop's
threads are idle; a checkpoint still being written is waited for first, and counts as the loop's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from torch import Tensor

from kexue_train.batches.dataset import SampleDataset
from kexue_train.metrics.file import read_metrics
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.optim.build import build_optimizer
from kexue_train.train import build_training, data
from kexue_train.train.checkpoint import FullTensors, checkpoint_name
from kexue_train.train.data import heldout_batches
from kexue_train.train.engine import Engine, TorchEngine, build_engine
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.launch import train_here
from kexue_train.train.objective import PretrainingObjective

_progress = Console(stderr=True, highlight=False)

MicroBatches = Sequence[dict[str, Tensor]]
Work = Callable[[MicroBatches], float]
"""Works on the micro-batches of a block; returns the seconds that took."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some steps, and what each took for them."""

    tokens: int
    """Real ones."""
    saved: bool
    """Whether the loop saved a checkpoint meanwhile."""
    seconds: dict[str, float]
    """By name; the loop's is "loop"."""
    cpu_seconds: dict[str, float]
    """The same of all threads, little disturbed by others on the machine."""

    def rate(self, name: str) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds[name]

    def cpu_ratio(self, name: str) -> float:
        """CPU time of ``name`` by that of the loop."""
        return self.cpu_seconds[name] / self.cpu_seconds["loop"]


@dataclass
class Measured:
    """Figures of one training."""

    blocks: list[Block] = field(default_factory=list)
    start_seconds: float = 0.0
    """From the call to the first micro-step; everything is imported by then."""
    stall_seconds: list[float] = field(default_factory=list)
    """By which each checkpoint held the loop up."""


def warm_up_steps(block: int) -> int:
    """Half a block, so that what follows every ``block`` steps falls into the middle of a block."""
    return max(1, block // 2)


def num_steps(block: int, rounds: int) -> int:
    """Steps of a training with so many blocks: some to warm up before, and one that nobody times after them."""
    return warm_up_steps(block) + rounds * block + 1


def train_in_blocks(config: JobConfig, samples: Path, out: Path, block: int, others: Mapping[str, Work]) -> Measured:
    """Train; after each block of steps let each of ``others`` work, another one first each time.

    Args:
        config: One worker, plain torch, ``num_steps`` steps.
        samples: Folder of sample shards.
        out: Folder for checkpoints, metrics and logs; a fresh one.
        block: Steps of a block.
        others: By name.
    """
    measured, started = Measured(), time.perf_counter()

    def build(train: Any, phase: Any, *rest: Any) -> Engine:
        return _Recorder(build_engine(train, phase, *rest), config, TrainDir(out), block, others, measured, started)

    def one_batch(*arguments: Any) -> Any:
        return heldout_batches(*arguments)[:1]  # the validation that ends a training is not what is measured

    with (
        mock.patch.object(build_training, "build_engine", build),
        mock.patch.object(data, "heldout_batches", one_batch),
    ):
        train_here(config, samples, out)
    lines = read_metrics(TrainDir(out).metrics)
    measured.stall_seconds = [line["stall_seconds"] for line in lines if line["kind"] == "checkpoint"]
    return measured


class BareSteps:
    """Forward, losses, backward and optimizer on a model of its own, and nothing else."""

    def __init__(self, config: JobConfig, dataset: SampleDataset) -> None:
        train, size = config.train, int(config.train.micro_batch_size)
        model = RoFormerV2ForPreTraining(build_hf_config(config.model, dataset.vocab_size))
        objective = PretrainingObjective(model, pretraining_heads(train.objective))
        objective.scale_to(dataset, size)
        windows = train.global_batch_size // size
        optimizer = build_optimizer(config.optimizer, model, accumulation_steps=windows, seed=config.seed)
        self._engine = TorchEngine(objective.train(), optimizer)

    def __call__(self, batches: MicroBatches) -> float:
        """See ``Work``."""
        started = time.perf_counter()
        for batch in batches:
            self._engine.micro_step(batch)
        return time.perf_counter() - started


def real_tokens(batches: MicroBatches) -> int:
    """Tokens without padding."""
    return sum(int((batch["sequence_ids"] > 0).sum()) for batch in batches)


class _Recorder:
    """An ``Engine`` around another, which notes the micro-batches and hands them over after each block."""

    def __init__(
        self, inner: Engine, config: JobConfig, paths: TrainDir, block: int, others: Mapping[str, Work],
        measured: Measured, called: float,
    ) -> None:  # fmt: skip
        self._inner, self._train, self._paths = inner, config.train, paths
        self._block, self._others, self._measured, self._called = block, others, measured, called
        self._windows = self._train.global_batch_size // int(self._train.micro_batch_size)
        self._batches: list[dict[str, Tensor]] = []
        self._steps = 0  # before the block
        self._started = self._cpu_started = 0.0

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``Engine``."""
        if not self._started:
            self._started, self._cpu_started = time.perf_counter(), time.process_time()
            self._measured.start_seconds = self._started - self._called
        steps = self._block if self._steps else warm_up_steps(self._block)
        if len(self._batches) == steps * self._windows:
            self._hand_over(steps)
        self._batches.append(batch)
        return self._inner.micro_step(batch)

    def full_tensors(self) -> FullTensors:
        """See ``Engine``."""
        return self._inner.full_tensors()

    def full_parameter(self, param: Tensor) -> Tensor:
        """See ``Engine``."""
        return self._inner.full_parameter(param)

    def _hand_over(self, steps: int) -> None:
        done = self._steps + steps
        saved_step = done // self._train.checkpoints.every * self._train.checkpoints.every
        saved = saved_step > self._steps
        while saved and not (self._paths.checkpoints / checkpoint_name(saved_step)).exists():
            time.sleep(0.01)
        seconds = {"loop": time.perf_counter() - self._started}
        cpu_seconds = {"loop": time.process_time() - self._cpu_started}
        turn = len(self._measured.blocks) % max(1, len(self._others))
        names = list(self._others)
        for name in names[turn:] + names[:turn]:
            before = time.process_time()
            seconds[name] = self._others[name](self._batches)
            cpu_seconds[name] = time.process_time() - before
        taken = ", ".join(f"{name} {value:.2f} s (CPU {cpu_seconds[name]:.2f})" for name, value in seconds.items())
        _progress.print(f"step {done}: {taken}{', a checkpoint' if saved else ''}", soft_wrap=True)
        if self._steps:  # those before have warmed up
            self._measured.blocks.append(Block(real_tokens(self._batches), saved, seconds, cpu_seconds))
        self._batches, self._steps = [], done
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
