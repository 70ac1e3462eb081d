"""One YAML file = one run: a section per stage, checked as a whole before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from kexue_train.corpus.config import CorpusConfig
from kexue_train.downstream.evaluate.config import EvaluateConfig
from kexue_train.executor.config import ExecutionConfig
from kexue_train.foundation.config import Config
from kexue_train.foundation.config_file import read_with_overrides, resolve_relative_paths
from kexue_train.foundation.credentials import redact_values
from kexue_train.foundation.shipped_configs import find_config
from kexue_train.model.config import ModelConfig
from kexue_train.optim.config import OptimizerConfig
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.shuffle.config import ShuffleConfig, check_fits_sources
from kexue_train.supervised.config import SupervisedConfig, check_weighting_fits
from kexue_train.train.config import RENAMED_KEYS, TrainConfig, check_model_fits, check_optimizer_fits

_PATHS = (
    "corpus.inputs",
    "corpus.sources.inputs",
    "shuffle.weights",
    "tokenizer.source",
    "samples.dictionary",
    "train.init_from",
    "supervised.data",
    "supervised.tasks",
    "evaluate.data",
    "evaluate.sts_data",
)
"""Settings that name files or folders."""


class RunConfig(Config):
    """A whole run, from corpus to report."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; a run folder belongs to one name."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Every random choice derives from it."""
    corpus: CorpusConfig
    """Where the text comes from."""
    shuffle: ShuffleConfig = ShuffleConfig()
    """Global shuffle into text shards."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """WordPiece vocabulary."""
    samples: SampleConfig = SampleConfig()
    """Packed MLM + NSP rows."""
    model: ModelConfig = ModelConfig()
    """Size of the encoder."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Tiger and its schedule."""
    train: TrainConfig
    """Length, batches and devices of training."""
    supervised: SupervisedConfig | None = None
    """A second stage on labelled tasks; without the section the run has none."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Scores of the exported model."""
    execution: ExecutionConfig = ExecutionConfig()
    """Where the work runs."""

    @property
    def num_cpus(self) -> int:
        """CPUs of a local Ray: enough for the tasks of the data stages and for the workers of training."""
        return max(self.execution.num_tasks_at_once, self.train.num_workers)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the sample rows that training needs, ``samples.seq_len`` first."""
        return tuple(dict.fromkeys((self.samples.seq_len, *self.train.seq_lens)))

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and ``section.key=value`` overrides; relative paths of the file start at its folder.

        ``path`` may be the name of a shipped configuration, such as ``demo``; it is read as ``configs/demo.yaml``.

        Raises:
            ConfigError: If the file or any value is wrong; every problem is listed with its line and key.
        """
        file, home = find_config(path)
        values, lines = read_with_overrides(file, overrides, RENAMED_KEYS)
        values = resolve_relative_paths(values, lines, home, _PATHS)
        return cls.parse(values, where=str(path), lines=lines)

    def to_yaml(self) -> str:
        """Return the resolved configuration, with every default written out and credentials masked."""
        return yaml.safe_dump(redact_values(self.model_dump(mode="json")), sort_keys=False, allow_unicode=True)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.samples.seq_len > self.model.max_position_embeddings:
            raise ValueError(
                f"samples.seq_len={self.samples.seq_len} is longer than model.max_position_embeddings="
                f"{self.model.max_position_embeddings}; lower the one or raise the other"
            )
        check_optimizer_fits(self.optimizer, self.train)
        check_model_fits(self.model, self.train)
        if self.supervised is not None:
            check_weighting_fits(self.supervised, self.optimizer, self.train)
        lengths = self.train.seq_lens
        if lengths and self.samples.seq_len not in lengths:
            raise ValueError(
                f"samples.seq_len={self.samples.seq_len} is not one of the lengths that train.phases name "
                f"({', '.join(map(str, lengths))}); set it to the one that the exported model is scored on"
            )
        if lengths and lengths[-1] > self.model.max_position_embeddings:
            raise ValueError(
                f"train.phases has seq_len={lengths[-1]}, longer than model.max_position_embeddings="
                f"{self.model.max_position_embeddings}; lower the one or raise the other"
            )
        warmup = self.optimizer.schedule.warmup
        if warmup > self.train.steps:
            raise ValueError(
                f"optimizer.schedule reaches its first knot at step {warmup}, but train.steps={self.train.steps}, so "
                "the learning rate would only ever rise; shorten the warm-up or train longer"
            )
        if self.corpus.source == "files" and not (self.corpus.inputs or self.corpus.sources):
            raise ValueError(
                "corpus.inputs is empty; name files, folders or globs, or set corpus.source: installed_docs"
            )
        if self.corpus.sources:
            check_fits_sources(self.shuffle, self.corpus.sources)
        if not self.samples.nsp and self.train.objective.nsp_weight not in (0.0, 1.0):
            raise ValueError(
                f"train.objective.nsp_weight={self.train.objective.nsp_weight:g} has no effect with samples.nsp=false: "
                "there are no pairs; remove one of them"
            )
        if self.shuffle.output != "arrow":
            raise ValueError(
                f"shuffle.output={self.shuffle.output}, but the later stages read arrow; for another format, use "
                "'kexue shuffle --to' on its own"
            )
        return self
