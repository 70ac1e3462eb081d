"""Records of a task -> labelled rows in the tokens of the samples, with counts of what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue_train.downstream.finetune.harness import make_problem
from kexue_train.downstream.finetune.tasks.choice import ChoiceProblem
from kexue_train.downstream.finetune.tasks.classification import ClassificationProblem
from kexue_train.downstream.finetune.tasks.problem import Problem
from kexue_train.downstream.finetune.tasks.reading import ReadingProblem
from kexue_train.downstream.finetune.tasks.tagging import TaggingProblem
from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.downstream.sequences import Reader, Segments
from kexue_train.foundation.artifacts import Manifest, find_complete, read_manifest
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.samples.labelled_rows import Example, TaskFacts, write_labelled_rows
from kexue_train.samples.schema import TOKENIZER_NAME
from kexue_train.samples.task_kinds import TaskKind
from kexue_train.supervised.config import SupervisedConfig
from kexue_train.supervised.needs import rows_recipe

_NO_TAG = -100


class Labelled(NamedTuple):
    """The examples of a task, and how many were refused for each reason."""

    facts: TaskFacts
    train: list[Example]
    heldout: list[Example]
    refused: dict[str, int]


def label_rows(
    name: str,
    task: SupervisedTask,
    config: SupervisedConfig,
    samples: Path,
    out_dir: Path,
    *,
    max_length: int,
    seed: int,
    progress: Progress = SILENT,
) -> Manifest:
    """Write the rows of a task to ``out_dir``; return at once where they are.

    Args:
        name: Name of the task.
        task: The task, whose records were checked.
        config: The section.
        samples: Folder of sample shards, whose tokenizer is used.
        out_dir: The folder.
        max_length: Tokens of a sequence, at most.
        seed: Of the run.
        progress: Receives the counts.

    Raises:
        EvaluationError: If the records cannot be used.
    """
    recipe = rows_recipe(name, task, config, samples, max_length=max_length, seed=seed)
    if manifest := find_complete(out_dir, recipe, replace=True, progress=progress):
        return manifest
    reader = _open_reader(samples / TOKENIZER_NAME, max_length)
    problem, _ = make_problem(task, config.data, reader, max_train=config.max_train, max_eval=config.max_heldout)
    found = examples_of(name, task, problem)
    if not found.train:
        raise EvaluationError(f"{name}: no example is left to learn from; refused: {_in_words(found.refused)}")
    known = read_manifest(samples).statistics
    manifest = write_labelled_rows(
        out_dir,
        recipe,
        found.facts,
        found.train,
        found.heldout,
        tokenizer=samples / TOKENIZER_NAME,
        vocab_size=int(known["vocab_size"]),
        special_token_ids=known["special_token_ids"],
        seed=seed,
        statistics={
            "refused": found.refused,
            "cut": reader.num_cut,
            "unknown_rate": reader.unknown_rate,
            "prior_loss": _prior_loss(found),
        },
    )
    progress.note(describe_rows(manifest))
    return manifest


def describe_rows(manifest: Manifest) -> str:
    """Return a line about the rows of a task, with the counts of what was refused."""
    facts = manifest.statistics
    held = int(facts["heldout_rows"])
    line = f"{facts['task']}: {manifest.rows - held:,} rows to learn from, {held:,} held out"
    line += f"; {facts['cut']:,} texts cut" if facts["cut"] else ""
    return line + (f"; refused: {_in_words(facts['refused'])}" if facts["refused"] else "")


def _in_words(refused: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in refused.items()) or "none"


def _open_reader(tokenizer: Path, max_length: int) -> Reader:
    from transformers import AutoTokenizer  # noqa: PLC0415  # seconds to import

    return Reader(AutoTokenizer.from_pretrained(str(tokenizer.absolute())), max_length)


def examples_of(name: str, task: SupervisedTask, problem: Problem) -> Labelled:
    """Return the examples of ``problem``, those of its development set as held out."""
    refused: Counter[str] = Counter()

    def usable(sequences: Sequence[Segments], labels: Sequence[int]) -> Example | None:
        if not all(map(_has_text, sequences)):
            refused["examples without a token"] += 1
            return None
        return Example([s.ids for s in sequences], [s.second_starts for s in sequences], labels)

    def of_split(split: str) -> list[Example]:
        found = (usable(sequences, labels) for sequences, labels in _pairs_of(problem, split, refused))
        return [example for example in found if example is not None]

    facts = TaskFacts(name, _kind_of(task), problem.num_labels, problem.label_names)
    return Labelled(facts, of_split("train"), of_split("dev"), dict(refused))


def _has_text(sequence: Segments) -> bool:
    is_pair = sequence.second_starts < len(sequence.ids)
    return len(sequence.ids) > (3 if is_pair else 2)  # [CLS] A [SEP] B [SEP]


def _kind_of(task: SupervisedTask) -> TaskKind:
    kind: Any = task.kind
    return kind  # type: ignore[no-any-return]  # ``load_tasks`` has looked


def _pairs_of(problem: Problem, split: str, refused: Counter[str]) -> list[tuple[list[Segments], list[int]]]:
    """Return the sequences and labels of every example, as ``samples/labelled_rows.py`` describes them."""
    match problem:
        case ClassificationProblem():
            pairs = zip(problem.sequences[split], problem.labels[split].tolist(), strict=True)
            return [([sequence], [label]) for sequence, label in pairs]
        case TaggingProblem():
            return [([piece.sequence], piece.tags.tolist()) for piece in problem.pieces[split]]
        case ReadingProblem():
            questions = problem.questions[split]
            lost = {number for number, question in enumerate(questions) if question.span is None}
            if lost:
                refused["questions whose answer is not in the text"] += len(lost)
            windows = (window for window in problem.windows[split] if window.question not in lost)
            return [([window.sequence], list(window.answer)) for window in windows]
        case ChoiceProblem():
            return [
                (options, [label])
                for options, label in zip(problem.options[split], problem.labels[split].tolist(), strict=True)
            ]
    raise TypeError(f"unsupported type of problem: {type(problem).__name__}")


def _prior_loss(found: Labelled) -> float | None:
    """Return the loss in nats of guesses by frequency alone, where labels are classes."""
    if found.facts.kind not in ("classification", "tagging"):
        return None
    counts = Counter(label for example in found.train for label in example.labels if label != _NO_TAG)
    shares = np.array(list(counts.values())) / sum(counts.values())
    return float(-(shares * np.log(shares)).sum()) or None
