"""The stage ``train`` of a run; the work itself is in ``pretrain.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kexue_train.executor.config import ExecutionConfig
from kexue_train.foundation.artifacts import Recipe, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.model.config import ModelConfig
from kexue_train.optim.config import OptimizerConfig
from kexue_train.samples.build_samples import list_of_lengths
from kexue_train.samples.config import TokenizerConfig
from kexue_train.train.config import TrainConfig
from kexue_train.train.job import JobConfig, read_samples, samples_digest


class TrainSections(Protocol):
    """What training reads of a run configuration."""

    @property
    def seed(self) -> int:
        """The seed of the run."""
        ...

    @property
    def model(self) -> ModelConfig:
        """Size of the encoder."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and its schedule."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length, batches and devices."""
        ...

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The vocabulary, whose size the plan needs."""
        ...

    @property
    def execution(self) -> ExecutionConfig:
        """Where the workers run."""
        ...

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the sample rows; that of ``samples.seq_len`` first."""
        ...


def job_of(config: TrainSections) -> JobConfig:
    """Return the sections that determine training."""
    return JobConfig(seed=config.seed, model=config.model, optimizer=config.optimizer, train=config.train)


def last_checkpoint(pretrain_dir: Path) -> Path:
    """Return the checkpoint that a finished training ended with.

    Raises:
        ArtifactError: If training is not finished.
    """
    manifest = read_manifest(pretrain_dir)
    if "checkpoint" not in manifest.statistics:
        raise ArtifactError(f"{pretrain_dir}: is no finished training; run 'kexue train' first")
    return pretrain_dir / str(manifest.statistics["checkpoint"])


def _rows(config: TrainSections, samples: Path) -> Path:
    """Return what training reads: the samples, or the list of those of all lengths that its phases need."""
    return list_of_lengths(samples) if len(config.row_lengths) > 1 else samples


def _recipe(config: TrainSections, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    job = job_of(config)
    return {out: job.recipe(samples_digest(read_samples(_rows(config, inputs[0]), job)))}


def _make(config: TrainSections, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415  # loads torch
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415  # the same

    job, rows = job_of(config), _rows(config, inputs[0])
    launch = launcher_of(job, rows, out, config.execution)
    pretrain(job, rows, out, launch=launch, replace=True, progress=progress)


def _describe(_config: TrainSections, out: Path) -> str:
    found = read_manifest(out).statistics
    return f"{found['steps']:,} steps, {found['tokens']:,} tokens, {found['parameters']:,} parameters"


def _plan(config: TrainSections, outlook: Outlook) -> StagePlan:
    from kexue_train.train.plan import plan_pretraining  # noqa: PLC0415  # loads torch

    return plan_pretraining(config, outlook)


TRAIN = Stage(
    name="train",
    folder="pretrain",
    reads=("samples",),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
)
"""The pretrained encoder, as checkpoints."""
