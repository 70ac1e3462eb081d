"""The stage ``supervise`` of a run: the last checkpoint -> one trained further on labelled tasks and masked words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kexue_train.foundation.artifacts import Manifest, Recipe, read_manifest
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.supervised.config import SupervisedConfig
from kexue_train.supervised.needs import RowsDir, recipes
from kexue_train.train.job import JobConfig, read_samples, samples_digest
from kexue_train.train.stage import TrainSections, last_checkpoint


class SupervisedSections(TrainSections, Protocol):
    """What the stage reads of a run configuration: what training reads, and its own section."""

    @property
    def supervised(self) -> SupervisedConfig | None:
        """The stage's own section; None: the run has no such stage."""
        ...


def section_of(config: SupervisedSections) -> SupervisedConfig:
    """Return the section.

    Raises:
        ConfigError: If the configuration has none.
    """
    if config.supervised is None:
        raise ConfigError("the configuration has no section 'supervised'; add one with data, mix and steps")
    return config.supervised


def job_of(config: SupervisedSections, start: Path) -> JobConfig:
    """Return the training that the section describes, from the checkpoint or model folder ``start`` on.

    What the section does not say is as in pretraining.

    Raises:
        ConfigError: If its batches do not multiply out.
    """
    section, train = section_of(config), config.train.model_dump(mode="json")
    train |= {"steps": section.steps, "phases": [], "init_from": str(start.absolute())}
    for key in ("global_batch_size", "micro_batch_size"):
        if (value := getattr(section, key)) is not None:
            train[key] = value
    train["objective"] |= {"residual_ramp_steps": 0, "weighting": section.weighting.model_dump(mode="json")}
    optimizer = config.optimizer.model_dump(mode="json")
    optimizer |= {"lr": section.lr, "schedule": section.schedule_of_steps.model_dump(mode="json")}
    values = {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "optimizer": optimizer,
        "train": train,
    }
    return JobConfig.parse(values, where="supervised")


def supervise(
    config: SupervisedSections,
    start: Path,
    samples: Path,
    out_dir: Path,
    *,
    shards: Path | None = None,
    port: int | None = None,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Train the weights of ``start`` further on the tasks of the mix; resumes after any interruption.

    Args:
        config: The run configuration.
        start: A checkpoint or an exported model.
        samples: Folder of sample shards: the masked words, and the tokenizer.
        out_dir: Folder for checkpoints, metrics and logs; ``OUT_DIR-rows`` beside it gets the rows and the mix.
        shards: Text shards of the corpus, with which the tasks' texts are compared.
        port: Rendezvous port of torchrun.
        replace: Move a training of other settings aside instead of refusing.
        progress: Receives counts, steps and metrics.

    Raises:
        KexueError: Tells what is wrong with all of the tasks together; or as ``pretrain``.
    """
    from kexue_train.supervised.prepare import prepare_rows  # noqa: PLC0415  # loads torch
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415  # the same
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415  # the same

    section, job = section_of(config), job_of(config, start)
    longest = config.model.max_position_embeddings
    mix = prepare_rows(section, samples, shards, RowsDir(out_dir), longest=longest, seed=config.seed, progress=progress)
    launch = launcher_of(job, mix, out_dir, config.execution, port)
    return pretrain(job, mix, out_dir, launch=launch, replace=replace, progress=progress)


def _recipe(config: SupervisedSections, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    shards, samples, pretrained = inputs
    section, paths = section_of(config), RowsDir(out)
    job = job_of(config, last_checkpoint(pretrained))
    longest = config.model.max_position_embeddings
    found = recipes(section, samples, shards, paths, longest=longest, seed=config.seed)
    return found | {out: job.recipe(samples_digest(read_samples(paths.mix, job)))}


def _make(config: SupervisedSections, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    shards, samples, pretrained = inputs
    supervise(config, last_checkpoint(pretrained), samples, out, shards=shards, replace=True, progress=progress)


def _describe(config: SupervisedSections, out: Path) -> str:
    found, tasks = read_manifest(out).statistics, section_of(config).task_names
    return f"{found['steps']:,} steps on labelled tasks ({', '.join(tasks)}), {found['tokens']:,} tokens"


def _plan(config: SupervisedSections, outlook: Outlook) -> StagePlan:
    section, train = section_of(config), config.train
    rows = section.steps * (section.global_batch_size or train.global_batch_size)
    return StagePlan(
        tasks=train.num_workers,
        disk_bytes=(train.checkpoints.keep + 1) * 8 * outlook.parameters,
        scratch_bytes=8 * outlook.parameters,
        basis=f"{rows:,} rows and examples of {len(section.mix)} tasks; their lengths are not known beforehand",
    )


SUPERVISE = Stage(
    name="supervise",
    folder="supervised",
    title="Supervised stage",
    reads=("shuffle", "samples", "train"),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
    section="supervised",
)
"""The pretrained encoder after labelled tasks, as checkpoints; only runs with a section ``supervised`` have it."""
