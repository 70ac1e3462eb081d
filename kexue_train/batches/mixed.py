"""Masked words and labelled tasks in one training: which task a micro-batch is of is a pure function of its number.

Micro-batches are counted through all steps and ranks: number j · world size + r of step t is micro-batch j of rank r.
So a step has the same tasks on any number of ranks. The stream of numbers is cut into windows, in which every task has
exactly its share in random order (``mixture.py``); a task's own micro-batches read its rows in its own epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from kexue_train.batches.collate import Batch, make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.labelled import Arrays, LabelledDataset
from kexue_train.batches.mixture import quotas, split
from kexue_train.foundation.artifacts import Manifest, digest_of, read_manifest
from kexue_train.foundation.counter_rng import Purpose
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.labelled_rows import KIND
from kexue_train.samples.mlm import MaskingRates
from kexue_train.samples.task_kinds import WORDS

_LONGEST_WINDOW = 10_000


class MixedDataset:
    """Sample rows and labelled rows, in given shares of the micro-batches.

    Args:
        weights: Folders of sample shards (at most of one length) and of labelled rows (at least one), with the shares
            of the micro-batches that they get; several folders of sample shards are one task together.

    Attributes:
        words: The sample rows; None if there are none.
        tasks: The labelled rows.
        shares: Micro-batches of each task in a window, ``words`` first if there are any.

    Raises:
        ArtifactError: If a folder is damaged, two have one task, or they have not one tokenizer.
        ConfigError: If a weight is not positive or too small.
    """

    def __init__(self, weights: Mapping[Path, float]) -> None:
        kinds = {folder: read_manifest(folder).kind for folder in weights}
        samples = {folder: weight for folder, weight in weights.items() if kinds[folder] != KIND}
        labelled = [folder for folder in weights if kinds[folder] == KIND]
        self.weights = dict(weights)
        self.words = SampleDataset(samples) if samples else None
        self.tasks = tuple(map(LabelledDataset, labelled))
        self.names = (*((WORDS,) if samples else ()), *(task.name for task in self.tasks))
        _require_agreement(self)
        each = [*([sum(samples.values())] if samples else []), *(weights[folder] for folder in labelled)]
        try:
            self.shares = exact_shares(each)
        except ValueError as error:
            raise ConfigError(f"{', '.join(self.names)}: {error}; raise it, or leave the task out") from error

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders; each has the tokenizer."""
        return (*(self.words.folders if self.words else ()), *(task.folder for task in self.tasks))

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Theirs."""
        return (*(self.words.manifests if self.words else ()), *(task.manifest for task in self.tasks))

    @property
    def content_digest(self) -> str:
        """Changes with what a training reads: rows and shares."""
        digests = [manifest.content_digest for manifest in self.manifests]
        words = self.words.content_digest if self.words else None
        return digest_of([digests, words, list(zip(self.names, self.shares, strict=True))])

    @property
    def seq_len(self) -> int:
        """Slots of a sample row; of labelled rows alone the longest."""
        return self.words.seq_len if self.words else self.longest

    @property
    def longest(self) -> int:
        """Slots of the widest row of any task."""
        return max([task.width for task in self.tasks] + ([self.words.seq_len] if self.words else []))

    @property
    def vocab_size(self) -> int:
        """Pieces of the vocabulary."""
        return int(self.manifests[0].statistics["vocab_size"])

    @property
    def num_training_rows(self) -> int:
        """Rows of all tasks that a step may read."""
        return sum(task.num_training_rows for task in self.tasks) + (self.words.num_training_rows if self.words else 0)

    @cached_property
    def share_of(self) -> dict[str, float]:
        """Share of each task in the micro-batches."""
        return {name: share / sum(self.shares) for name, share in zip(self.names, self.shares, strict=True)}

    def task_at(self, number: int, seed: int) -> tuple[str, int]:
        """Return the task of micro-batch ``number`` and how many of that task came before it."""
        tasks, own = split(np.array([number]), self.shares, seed, Purpose.TASK_ORDER)
        return self.names[int(tasks[0])], int(own[0])

    def make_batch(self, number: int, size: int, *, seed: int, rates: MaskingRates) -> Batch | Arrays:
        """Return micro-batch ``number`` with ``size`` rows or examples."""
        name, own = self.task_at(number, seed)
        positions = np.arange(own * size, (own + 1) * size)
        if name == WORDS:
            assert self.words is not None
            rows, epochs = self.words.rows_at(positions, seed)
            return make_batch(self.words, rows, epochs, seed=seed, rates=rates)
        task = next(task for task in self.tasks if task.name == name)
        return task.make_batch(task.rows_at(positions, seed))


TrainingData = SampleDataset | MixedDataset
"""What a training reads."""


def open_folders(weights: Mapping[Path, float]) -> TrainingData:
    """Return the rows of these folders, by what they hold."""
    is_mixed = any(read_manifest(folder).kind == KIND for folder in weights)
    return MixedDataset(weights) if is_mixed else SampleDataset(weights)


def exact_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return micro-batches per window: whole numbers as they are, without a common factor; others to one in 10,000.

    Raises:
        ValueError: If a weight is not positive, or so small a share that it gets nothing.
    """
    if all(weight > 0 and float(weight).is_integer() for weight in weights) and sum(weights) <= _LONGEST_WINDOW:
        whole = [int(weight) for weight in weights]
        factor = reduce(math.gcd, whole)
        return tuple(weight // factor for weight in whole)
    return quotas(weights)


def _require_agreement(mixed: MixedDataset) -> None:
    names = [task.name for task in mixed.tasks]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ArtifactError(f"{', '.join(double)}: in more than one folder of labelled rows; name each task once")

    def facts(manifest: Manifest) -> dict[str, Any]:
        known = {name: manifest.statistics[name] for name in ("vocab_size", "special_token_ids")}
        return known | {"tokenizer": manifest.parents.get("tokenizer")}

    first = facts(mixed.manifests[0])
    for folder, manifest in zip(mixed.folders, mixed.manifests, strict=True):
        for name, value in facts(manifest).items():
            if value != first[name]:
                raise ArtifactError(
                    f"{mixed.folders[0]} and {folder} cannot be trained on together: {name} is {first[name]} in the "
                    f"one and {value} in the other; make both with the same tokenizer"
                )
