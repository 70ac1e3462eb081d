"""One training job: the sections of a run that training needs, where it reads and where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from kexue_train.artifacts import Recipe, write_atomic
from kexue_train.batches.dataset import SampleDataset, open_samples
from kexue_train.config import Config, apply_overrides, read_yaml
from kexue_train.errors import ArtifactError, ConfigError, StaleArtifactError
from kexue_train.model.config import ModelConfig
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train.config import TrainConfig, check_optimizer_fits


class JobConfig(Config):
    """The sections of a run configuration that determine training."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        check_optimizer_fits(self.optimizer, self.train)
        return self

    @classmethod
    def load(cls, path: Path, overrides: list[str]) -> Self:
        """Read these sections of a run's YAML file; the other sections are not looked at.

        Raises:
            ConfigError: If a value is wrong.
        """
        values, lines = read_yaml(path)
        values = apply_overrides(values, overrides)
        return cls.parse({key: values[key] for key in cls.model_fields if key in values}, where=str(path), lines=lines)

    def recipe(self, samples_digest: str) -> Recipe:
        """What determines the trained weights."""
        settings: dict[str, Any] = {
            "seed": self.seed,
            "model": self.model.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "train": self.train.settings_of_result(),
        }
        return Recipe(kind="checkpoint", settings=settings, parents={"samples": samples_digest})


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
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log per rank, and the launcher's."""
        return self.root / "logs"


def read_samples(path: Path, config: JobConfig) -> SampleDataset:
    """The sample shards, or a mixture of them, checked against the configuration; see ``open_samples``.

    Raises:
        ArtifactError: If there are no sample shards, or fewer training rows than one step takes.
        ConfigError: If the model cannot take sequences that long.
    """
    dataset = open_samples(path)
    if dataset.seq_len > config.model.max_position_embeddings:
        raise ConfigError(
            f"{path}: rows of {dataset.seq_len} tokens, but model.max_position_embeddings="
            f"{config.model.max_position_embeddings}; "
            f"raise it to {dataset.seq_len}, or make samples with a smaller samples.seq_len"
        )
    if dataset.num_training_rows < config.train.global_batch_size:
        raise ArtifactError(
            f"{path}: {dataset.num_training_rows} rows to train on are fewer than one step takes "
            f"(train.global_batch_size={config.train.global_batch_size}); lower it, or use a larger corpus"
        )
    return dataset


def prepare(config: JobConfig, samples: Path, paths: TrainDir) -> Recipe:
    """Make the folder ready for this job: claim it with the recipe, or check that it already trains the same.

    Raises:
        StaleArtifactError: If the folder trains something else.
    """
    recipe = config.recipe(read_samples(samples, config).content_digest)
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    paths.logs.mkdir(exist_ok=True)
    if paths.recipe.exists():
        found = Recipe.model_validate_json(paths.recipe.read_text(encoding="utf-8"))
        if reason := recipe.difference(found):
            raise StaleArtifactError(
                f"{paths.root}: holds the training of other settings: {reason}. Choose another output folder, or move "
                "this one away",
                reason,
            )
    else:
        write_atomic(paths.recipe, recipe.model_dump_json(indent=2) + "\n")
    return recipe
