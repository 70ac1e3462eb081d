"""One training job: the sections of a run that training needs, where it reads and where it writes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from kexue_train.batches.mixed import MixedDataset, TrainingData
from kexue_train.batches.open_samples import open_samples
from kexue_train.foundation.artifacts import Recipe, digest_of, write_atomic
from kexue_train.foundation.config import Config
from kexue_train.foundation.config_file import read_with_overrides, resolve_relative_paths
from kexue_train.foundation.credentials import redact_values
from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError, StaleArtifactError
from kexue_train.foundation.operating_system import lock_file
from kexue_train.foundation.shipped_configs import find_config
from kexue_train.model.config import ModelConfig
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train.config import RENAMED_KEYS, PhaseSettings, TrainConfig, check_model_fits, check_optimizer_fits
from kexue_train.train.initial_weights import check_initial_weights, digest_of_weights

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "KEXUE_TRAIN_MIRROR"
_LOCK_SECONDS = 60.0


class JobConfig(Config):
    """The sections of a run configuration that determine training."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        check_optimizer_fits(self.optimizer, self.train)
        check_model_fits(self.model, self.train)
        return self

    @classmethod
    def load(cls, path: Path, overrides: list[str]) -> Self:
        """Read these sections of a run's YAML file, or of a shipped one by name; the other sections are not looked at.

        A relative ``train.init_from`` of the file starts at its folder.

        Raises:
            ConfigError: If a value is wrong.
        """
        file, home = find_config(path)
        values, lines = read_with_overrides(file, overrides, RENAMED_KEYS)
        values = resolve_relative_paths(values, lines, home, ["train.init_from"])
        return cls.parse({key: values[key] for key in cls.model_fields if key in values}, where=str(path), lines=lines)

    def recipe(self, samples_digest: str) -> Recipe:
        """What determines the trained weights; reads the weights that ``train.init_from`` names."""
        settings: dict[str, Any] = {
            "seed": self.seed,
            "model": _as_recorded(self.model, "attention"),
            "optimizer": _as_recorded(self.optimizer, "weissi_sparsity"),
            "train": self.train.settings_of_result(),
        }
        parents = {"samples": samples_digest}
        if self.train.init_from:
            parents["init_from"] = digest_of_weights(self.train.init_from)
        return Recipe(kind="checkpoint", settings=settings, parents=parents)


def _as_recorded(section: Config, *later: str) -> dict[str, Any]:
    """Return the settings; those that came later than old folders are left out at their default, so that these resume.

    One whose default is None need not be named: a recipe without it says the same.
    """
    defaults = {name: type(section).model_fields[name].default for name in later}
    settings = section.model_dump(mode="json")
    return {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}


@dataclass(frozen=True)
class TrainDir:
    """Paths inside the folder that training writes."""

    root: Path

    @property
    def recipe(self) -> Path:
        """What this folder trains; written first."""
        return self.root / "recipe.json"

    @property
    def checkpoints(self) -> Path:
        """``step-XXXXXXXX`` folders and ``latest``."""
        return self.root / "checkpoints"

    @property
    def micro_batch_sizes(self) -> Path:
        """What ``micro_batch_size: auto`` found."""
        return self.root / "micro_batch_sizes.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def deepspeed_config(self) -> Path:
        """DeepSpeed's configuration, if it runs the steps."""
        return self.root / "deepspeed.json"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log per rank, and the launcher's."""
        return self.root / "logs"

    @property
    def stop(self) -> Path:
        """Whoever makes this file asks the training to save a checkpoint and end; it is then removed."""
        return self.root / "stop"

    @property
    def job(self) -> Path:
        """The job, for workers that are processes of their own; JSON, which is YAML too."""
        return self.logs / "job.json"

    @property
    def started(self) -> Path:
        """Rank 0 makes this file when all workers have met, and its launcher removes it before every start."""
        return self.logs / "started"

    @property
    def failure(self) -> Path:
        """What a worker found wrong, told to its launcher."""
        return self.logs / "failure.json"


def read_samples(path: Path, config: JobConfig) -> tuple[TrainingData, ...]:
    """The samples of each phase of the training, checked against the configuration; see ``open_samples``.

    Raises:
        ArtifactError: If there are no sample shards, none of a length that a phase needs, or fewer training rows than
            one step takes.
        ConfigError: If the model cannot take sequences that long.
    """
    found = open_samples(path)
    datasets = tuple(_samples_of(phase, found, path) for phase in config.train.phase_settings)
    for phase, dataset in zip(config.train.phase_settings, datasets, strict=True):
        longest = dataset.longest if isinstance(dataset, MixedDataset) else dataset.seq_len
        if longest > config.model.max_position_embeddings:
            raise ConfigError(
                f"{path}: rows of {longest} tokens, but model.max_position_embeddings="
                f"{config.model.max_position_embeddings}; "
                f"raise it to {longest}, or make samples with a smaller samples.seq_len"
            )
        if isinstance(dataset, MixedDataset):
            _check_mixture(config, path)
        elif config.train.objective.weighting.scheme != "equal":
            raise ConfigError(
                f"{path}: holds no labelled tasks, so train.objective.weighting has no effect; remove it, or set it as "
                "supervised.weighting"
            )
        if not isinstance(dataset, MixedDataset) and dataset.num_training_rows < phase.global_batch_size:
            raise ArtifactError(
                f"{path}: {dataset.num_training_rows} rows of {dataset.seq_len} tokens to train on are fewer than one "
                f"step takes (train.global_batch_size={phase.global_batch_size}); lower it, or use a larger corpus"
            )
    return datasets


def _check_mixture(config: JobConfig, path: Path) -> None:
    """Refuse what cannot train on labelled tasks.

    Raises:
        ConfigError: With the reason.
    """
    train = config.train
    if len(train.phases) > 1:
        raise ConfigError(f"{path}: mixes in labelled tasks, which train.phases cannot change; leave the phases out")
    if train.compute.cuda_graphs:
        raise ConfigError(
            f"{path}: micro-batches of labelled tasks differ in their shapes; set train.compute.cuda_graphs=false"
        )


def samples_digest(datasets: Sequence[TrainingData]) -> str:
    """Changes with what the phases read."""
    digests = {str(dataset.seq_len): dataset.content_digest for dataset in datasets}
    return digest_of(digests) if len(digests) > 1 else datasets[0].content_digest


def _samples_of(phase: PhaseSettings, found: Mapping[int, TrainingData], path: Path) -> TrainingData:
    lengths = " and ".join(map(str, found))
    if phase.seq_len is None:
        if len(found) > 1:
            raise ConfigError(
                f"{path}: holds samples of {lengths} tokens, but train.phases names no seq_len; name one in each "
                "phase, or give the samples of one length"
            )
        return next(iter(found.values()))
    if phase.seq_len not in found:
        raise ArtifactError(
            f"{path}: holds samples of {lengths} tokens, but a phase of train.phases needs seq_len={phase.seq_len}; "
            f"make them with 'kexue samples --seq-len {phase.seq_len}' and put them beside the others, or name another "
            "length"
        )
    return found[phase.seq_len]


def check_folder(config: JobConfig, samples: Path, paths: TrainDir, *, given: Path | None = None) -> Recipe:
    """Check that samples, weights and folder fit this job; writes nothing.

    Args:
        config: The job.
        samples: Folder of sample shards.
        paths: The folder, which may be absent.
        given: The user's configuration file, which may lie in the folder.

    Raises:
        StaleArtifactError: If the folder trains something else.
        ArtifactError: If it holds other things and no training.
    """
    datasets = read_samples(samples, config)
    if config.train.init_from:
        check_initial_weights(config.train.init_from, config.model, datasets[0])
    recipe = config.recipe(samples_digest(datasets))
    if not paths.recipe.exists():
        _refuse_foreign(paths, given)
        return recipe
    try:
        found = Recipe.model_validate_json(paths.recipe.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{paths.recipe}: is damaged ({str(error).partition(chr(10))[0]}), so it is not known what this folder "
            "trains; bring the file back from a copy, or choose another output folder"
        ) from None
    if reason := recipe.difference(found):
        raise StaleArtifactError(
            f"{paths.root}: holds the training of other settings: {reason}. Choose another output folder, or move "
            "this one away; train.init_from=CHECKPOINT starts there with the weights of a checkpoint",
            reason,
        )
    return recipe


def prepare(config: JobConfig, samples: Path, paths: TrainDir, *, given: Path | None = None) -> Recipe:
    """Make the folder ready for this job: claim it with the recipe, or check that it already trains the same.

    Raises:
        ArtifactError: As ``check_folder``, whose arguments these are.
    """
    recipe = check_folder(config, samples, paths, given=given)
    if not paths.recipe.exists():
        paths.root.mkdir(parents=True, exist_ok=True)
        write_atomic(paths.recipe, recipe.model_dump_json(indent=2) + "\n")
    paths.checkpoints.mkdir(exist_ok=True)
    paths.logs.mkdir(exist_ok=True)
    return recipe


def _refuse_foreign(paths: TrainDir, given: Path | None) -> None:
    """Refuse a folder that is not empty and no training's.

    A file that asks to stop and empty folders (for another disk, say) may be there, and workers may have begun their
    logs.
    """
    if not paths.root.exists():
        return
    if not paths.root.is_dir():
        raise ArtifactError(f"{paths.root}: is a file; choose another output folder")
    found = (path for path in paths.root.iterdir() if not path.name.startswith(".") and path != paths.stop)
    foreign = sorted(path.name for path in found if not _is_given(path, given) and not _is_harmless(path, paths))
    if foreign:
        raise ArtifactError(
            f"{paths.root}: no training of kexue_train (no {paths.recipe.name}), yet it holds {len(foreign)} files or "
            f"folders such as {foreign[0]!r}, which are left alone; choose an empty or new output folder"
        )


def _is_given(path: Path, given: Path | None) -> bool:
    return given is not None and path.exists() and given.exists() and path.samefile(given)


def _is_harmless(path: Path, paths: TrainDir) -> bool:
    if not path.is_dir():
        return False
    held = [file.name for file in path.iterdir()]
    return not held or (path == paths.logs and all(fnmatch(name, "rank-*.log") or name == ".lock" for name in held))


def values_to_show(config: JobConfig) -> dict[str, Any]:
    """Return the job as plain values for files, loggers and servers: with the credentials of the mirror masked."""
    values: dict[str, Any] = redact_values(config.model_dump(mode="json"))
    return values


def with_mirror(config: JobConfig, mirror: str | None) -> JobConfig:
    """Return ``config``, read from ``values_to_show``, with the mirror as it was; None: it has none."""
    checkpoints = config.train.checkpoints.model_copy(update={"mirror": mirror})
    return config.model_copy(update={"train": config.train.model_copy(update={"checkpoints": checkpoints})})


def write_job(config: JobConfig, paths: TrainDir) -> Path:
    """Write the job for workers that are processes of their own; return the file, which ``JobConfig.load`` reads.

    The mirror, which may have credentials, is told to them by the variable ``MIRROR_VARIABLE`` of their environment.
    """
    paths.logs.mkdir(parents=True, exist_ok=True)
    write_atomic(paths.job, json.dumps(values_to_show(config), indent=2) + "\n")
    return paths.job


@contextmanager
def hold_alone(file: Path) -> Iterator[None]:
    """Hold the lock ``file``, which ends with this process, however it ends; wait a minute for another holder.

    Workers of a killed run may live on for moments beside their successors.

    Raises:
        ResourceError: If another process still holds it then.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take_lock(descriptor, file)
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, file: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return lock_file(descriptor)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{file}: another training is at work in this folder; wait for it, stop it, or take another folder"
                ) from None
            time.sleep(0.2)
        except OSError as error:  # some network file systems have no locks
            return logger.warning("%s cannot be locked (%s)", file, error.strerror)
