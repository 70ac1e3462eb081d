"""Train an encoder's sentence vectors on sets, several seeds each, and score them before and after.

A set that fails is reported next to the others, and so is a seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, assert_never

from kexue_train.downstream.finetune.dropout import dropout_settings
from kexue_train.downstream.finetune.loop import train_seed
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder
from kexue_train.downstream.finetune.sentence_vectors.retrieval import RetrievalProblem
from kexue_train.downstream.finetune.sentence_vectors.save_vectors import save_vector_encoder
from kexue_train.downstream.finetune.sentence_vectors.similarity import SimilarityProblem
from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.downstream.load_model import LoadedHead, load_encoder, refuse_other_contents
from kexue_train.downstream.results.result import TASK_ERRORS, reason_of
from kexue_train.downstream.results.trained_vectors import VectorFailure, VectorResults, VectorSetResult
from kexue_train.downstream.results.training import SeedRun, SplitScores, spreads
from kexue_train.downstream.settings import VectorSettings
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

VectorProblem = SimilarityProblem | RetrievalProblem
T = TypeVar("T")
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
        """Train and score on the set in the folder ``data``; what was found before a failure is kept."""
        failures: list[VectorFailure] = []
        found: dict[str, Any] = {"name": self.name, "failures": failures}

        def attempt(what: str, work: Callable[[], T]) -> T | None:
            try:
                return work()
            except TASK_ERRORS as error:
                failures.append(VectorFailure(what=what, error=reason_of(error)))
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
            found["runs"] = [entry[0] for entry in trained if entry is not None]
            found["margins"] = [entry[1] for entry in trained if entry is not None and entry[1] is not None]
            found["after"] = spreads(found["runs"])
        return VectorSetResult(**found)

    def _read(self, data: Path) -> tuple[Splits, VectorProblem]:
        splits = read_vector_splits(data, self.name, self.settings)
        tokenizer, settings = self.loaded.tokenizer, self.settings
        match settings.loss:
            case "am-softmax":
                scale, margin = settings.scale_or_default, settings.margin_or_default
                return splits, RetrievalProblem(splits, tokenizer, self.max_length, scale=scale, margin=margin)
            case "cosent" | "sentence-bert":
                return splits, SimilarityProblem(splits, tokenizer, self.max_length, settings.loss)
            case "simcse":
                raise ValueError("simcse learns from sentences, not from a labelled set; call train_on_sentences")
        assert_never(settings.loss)

    def _train(self, splits: Splits, problem: VectorProblem, seed: int) -> tuple[SeedRun, float | None]:
        """Return the training, and its margin where that comes from the classes."""
        margin = None
        if self.settings.margin_from_diameter and isinstance(problem, RetrievalProblem):
            model, _ = self._fit(splits, problem.with_margin(0.0), seed)
            margin = problem.class_diameter(model)
            problem = problem.with_margin(margin)
        model, run = self._fit(splits, problem, seed)
        if self.save is not None and seed == 0:
            save_vector_encoder(model.loaded, self.save, self.settings.pooling, self.max_length)
        return run, margin

    def _fit(self, splits: Splits, problem: VectorProblem, seed: int) -> tuple[BiEncoder, SeedRun]:
        loaded = replace(self.loaded, model=copy.deepcopy(self.loaded.model))
        model = BiEncoder(loaded, self.settings.pooling, problem.head, problem.num_labels, seed=seed)
        unit = f"steps of {self.name}, seed {seed}"
        run = train_seed(
            model,
            problem,
            self.settings.fit,
            splits.scored,
            seed=seed,
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        return model, run


def read_vector_splits(data: Path, name: str, settings: VectorSettings) -> Splits:
    """Return the records of a set.

    Raises:
        EvaluationError: If there is no training file, or a file is damaged or empty.
    """
    paths = [f"{name}/{split}{suffix}" for split in ("train", "dev", "test") for suffix in _SUFFIXES]
    there = {Path(path).name.partition(".")[0]: path for path in reversed(paths) if (data / path).is_file()}
    if "train" not in there:
        raise EvaluationError(f"{data / name}: no train.jsonl.gz or train.jsonl, so there is nothing to learn from")
    files = SupervisedTask.parse({"title": name, "kind": "sentence vectors"} | there, where=str(data / name))
    return read_splits(files, data, _text_of, max_train=settings.max_train, max_eval=settings.max_eval)


def _text_of(record: Record) -> str:
    return record.text("text_a" if "text_a" in record.values else "text")


def _facts(splits: Splits, problem: VectorProblem) -> dict[str, Any]:
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


def train_vectors(
    model_dir: Path,
    data: Path,
    names: Sequence[str],
    settings: VectorSettings,
    *,
    save: Path | None = None,
    progress: Progress = SILENT,
) -> VectorResults:
    """Train on each set alone and score.

    Args:
        model_dir: Any model that ``AutoModel`` opens, with its tokenizer.
        data: Folder that holds the sets, each a folder with ``train``, maybe ``dev`` and ``test`` files
            (``.jsonl.gz`` or ``.jsonl``): ``text_a``, ``text_b``, ``score`` (or ``label``), for am-softmax ``text``,
            ``label``.
        names: Of the sets.
        settings: What applies to all.
        save: Receives a folder per set for sentence-transformers, the encoder after training with seed 0.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the folder of the data is missing, or the model or its tokenizer cannot be loaded.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the sets, one folder per set")
    refuse_other_contents(save / name for name in names if save)
    loaded = load_encoder(model_dir, **dropout_settings(model_dir, settings.fit.dropout))
    max_length = loaded.fitting(settings.max_length)
    results = []
    for name in names:
        run = SetRun(name, loaded, settings, max_length, save / name if save else None, progress)
        results.append(run.on(data))
        progress.note(_in_words(results[-1]))
    return VectorResults(
        model_type=loaded.model_type,
        parameters=loaded.parameters,
        loss=settings.loss,
        scale=settings.scale_or_default if settings.loss == "am-softmax" else None,
        margin=None if settings.loss != "am-softmax" or settings.margin_from_diameter else settings.margin_or_default,
        pooling=settings.pooling,
        max_length=max_length,
        seeds=settings.seeds,
        fit=settings.fit,
        sets=results,
    )


def _in_words(result: VectorSetResult) -> str:
    found = []
    if result.before and result.metric:
        found.append(f"before {result.before[result.split][result.metric]:.3f}")
    if result.after and result.metric:
        found.append(f"after {result.after[result.split][result.metric].mean:.3f}")
    failed = [f"{failure.what} failed: {failure.error}" for failure in result.failures]
    return f"{result.name}: {'; '.join([*found, *failed])}"
