"""One set: its records, what words and the encoder as it is are worth, and a training per seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kexue_train.downstream.evaluate.load_model import LoadedHead
from kexue_train.downstream.evaluate.sentence_vectors.sentence_transformers_folder import (
    write_sentence_transformers_folder,
)
from kexue_train.downstream.evaluate.zero_shot.records import Record
from kexue_train.downstream.finetune.loop import fit
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder
from kexue_train.downstream.finetune.sentence_vectors.likeness import LikenessProblem
from kexue_train.downstream.finetune.sentence_vectors.retrieval import RetrievalProblem
from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.task import Task
from kexue_train.downstream.results.trained_vectors import VectorFailure, VectorSetResult
from kexue_train.downstream.results.training import SeedRun, SplitScores, spreads
from kexue_train.downstream.settings import VectorSettings
from kexue_train.foundation.errors import EvaluationError, KexueError
from kexue_train.foundation.progress import Progress

Problem = LikenessProblem | RetrievalProblem
T = TypeVar("T")
# What may go wrong in one set alone; the second is also how PyTorch says that a device has too little memory.
_SET_ERRORS = (KexueError, RuntimeError, MemoryError)
_SUFFIXES = (".jsonl.gz", ".jsonl")


@dataclass(frozen=True)
class SetRun:
    """A set with everything that its trainings share."""

    name: str
    loaded: LoadedHead
    """The encoder as given; never trained itself."""
    settings: VectorSettings
    max_length: int
    save: Path | None
    """Receives the encoder after training with seed 0."""
    progress: Progress

    def on(self, data: Path) -> VectorSetResult:
        """Everything about the set in the folder ``data``; what was found before a failure is kept."""
        failures: list[VectorFailure] = []
        found: dict[str, Any] = {"name": self.name, "failures": failures}

        def attempt(what: str, work: Callable[[], T]) -> T | None:
            try:
                return work()
            except _SET_ERRORS as error:
                failures.append(VectorFailure(what=what, error=str(error).strip() or type(error).__name__))
                return None

        read = attempt("set", lambda: self._read(data))
        if read is not None:
            splits, problem = read
            untrained = BiEncoder(self.loaded, self.settings.pooling, "none", 0, seed=0)
            found |= _facts(splits, problem)
            found["words"] = attempt("tf-idf", lambda: _scores(splits, problem.words))
            found["before"] = attempt("before", lambda: _scores(splits, lambda s: problem.score(untrained, s)))
            trained = [
                attempt(f"seed {seed}", lambda seed=seed: self._train(splits, problem, seed))  # type: ignore[misc]
                for seed in range(self.settings.seeds)
            ]
            found["runs"] = [run for run in trained if run is not None]
            found["after"] = spreads(found["runs"])
        return VectorSetResult(**found)

    def _read(self, data: Path) -> tuple[Splits, Problem]:
        splits = read_vector_splits(data, self.name, self.settings)
        if self.settings.loss == "am-softmax":
            return splits, RetrievalProblem(splits, self.loaded.tokenizer, self.max_length)
        return splits, LikenessProblem(splits, self.loaded.tokenizer, self.max_length, self.settings.loss)

    def _train(self, splits: Splits, problem: Problem, seed: int) -> SeedRun:
        loaded = replace(self.loaded, model=copy.deepcopy(self.loaded.model))
        model = BiEncoder(loaded, self.settings.pooling, problem.head, problem.num_labels, seed=seed)
        unit = f"steps of {self.name}, seed {seed}"
        found = fit(
            model,
            problem.num_examples,
            lambda places: problem.loss(model, places),
            self.settings.fit,
            seed=seed,
            score=lambda: problem.score(model, "dev")[problem.metric],
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        if self.save is not None and seed == 0:
            self._save(loaded, self.save)
        return SeedRun(
            seed=seed,
            best_epoch=found.best_epoch,
            losses=found.losses,
            dev_by_epoch=found.scores,
            scores=_scores(splits, lambda split: problem.score(model, split)),
        )

    def _save(self, loaded: LoadedHead, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_sentence_transformers_folder(
            loaded,
            folder,
            folder.name,
            pooling=self.settings.pooling,
            max_length=self.max_length,
            has_new_weights=True,
        )


def read_vector_splits(data: Path, name: str, settings: VectorSettings) -> Splits:
    """The records of a set.

    Raises:
        EvaluationError: If there is no training file, or a file is damaged or empty.
    """
    paths = [f"{name}/{split}{suffix}" for split in ("train", "dev", "test") for suffix in _SUFFIXES]
    there = {Path(path).name.partition(".")[0]: path for path in reversed(paths) if (data / path).is_file()}
    if "train" not in there:
        raise EvaluationError(f"{data / name}: no train.jsonl.gz or train.jsonl, so there is nothing to learn from")
    files = Task.parse({"title": name, "kind": "sentence vectors"} | there, where=str(data / name))
    return read_splits(files, data, _text_of, max_train=settings.max_train, max_eval=settings.max_eval)


def _text_of(record: Record) -> str:
    return record.text("text_a" if "text_a" in record.values else "text")


def _facts(splits: Splits, problem: Problem) -> dict[str, Any]:
    read = problem.sentences.values()
    return {
        "metric": problem.metric,
        "records": {"train": len(splits.train)} | {split: len(records) for split, records in splits.scored.items()},
        "is_dev_held_out": splits.is_dev_held_out,
        "num_labels": problem.num_labels,
        "cut": sum(sentences.num_cut for sentences in read),
        "unknown_rate": max(sentences.unknown_rate for sentences in read),
    }


def _scores(splits: Splits, score: Callable[[str], dict[str, float]]) -> SplitScores:
    return {split: score(split) for split in splits.scored}  # type: ignore[misc]  # its keys are splits
