"""Everything that the stage trains on: rows of every task, the mix, and what the corpus has of the tasks' texts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.downstream.task_files import Record, read_data_file
from kexue_train.foundation.artifacts import (
    InputFile,
    Recipe,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    write_atomic,
)
from kexue_train.foundation.errors import EvaluationError, KexueError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.samples.task_kinds import WORDS
from kexue_train.supervised.config import SupervisedConfig
from kexue_train.supervised.contamination import Contamination, find_contamination
from kexue_train.supervised.label_rows import label_rows
from kexue_train.supervised.needs import CONTAMINATION, RowsDir, load_tasks, max_length_of, recipes
from kexue_train.supervised.records import TaskRecords, read_all, texts_of


def prepare_rows(
    config: SupervisedConfig,
    samples: Path,
    shards: Path | None,
    paths: RowsDir,
    *,
    longest: int,
    seed: int,
    progress: Progress = SILENT,
) -> Path:
    """Make the rows of all tasks, compare their texts with the corpus, and write the mix; return its file.

    Args:
        config: The section.
        samples: Folder of sample shards.
        shards: Text shards of the corpus; None: nothing is compared.
        paths: Where everything goes.
        longest: Tokens of the longest sequence of the model.
        seed: Of the run.
        progress: Receives the counts.

    Raises:
        KexueError: Tells what is wrong with all of the tasks together.
    """
    tasks = load_tasks(config)
    wanted = recipes(config, samples, shards, paths, longest=longest, seed=seed)
    is_made = {folder: find_complete(folder, recipe, replace=True) for folder, recipe in wanted.items()}
    if not all(is_made.values()):
        records = read_all(config, tasks)
        if shards is not None and tasks:
            _compare_with_corpus(config, records, shards, wanted[paths.contamination], paths, progress)
        _label_all(config, tasks, samples, paths, longest=longest, seed=seed, progress=progress)
    paths.root.mkdir(parents=True, exist_ok=True)
    folders = {name: samples if name == WORDS else paths.rows(name) for name in config.mix}
    lines = [
        f"{json.dumps(os.path.relpath(folders[name], paths.root))}: {share!r}" for name, share in config.mix.items()
    ]
    text = "\n".join(lines) + "\n"
    if not paths.mix.exists() or paths.mix.read_text(encoding="utf-8") != text:
        write_atomic(paths.mix, text)
    return paths.mix


def _label_all(
    config: SupervisedConfig,
    tasks: Mapping[str, SupervisedTask],
    samples: Path,
    paths: RowsDir,
    *,
    longest: int,
    seed: int,
    progress: Progress,
) -> None:
    faults = []
    for number, (name, task) in enumerate(tasks.items()):
        progress.update(number, len(tasks), "tasks")
        length = max_length_of(task, config, longest)
        try:
            label_rows(name, task, config, samples, paths.rows(name), max_length=length, seed=seed, progress=progress)
        except KexueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise EvaluationError("supervised: rows cannot be made. " + "\n".join(faults))


def _compare_with_corpus(
    config: SupervisedConfig,
    records: Sequence[TaskRecords],
    shards: Path,
    recipe: Recipe,
    paths: RowsDir,
    progress: Progress,
) -> None:
    """Write what the corpus has of the tasks' texts, and refuse a task of which it has too much.

    Raises:
        EvaluationError: Names every such task.
    """
    if find_complete(paths.contamination, recipe, replace=True):
        return
    texts = {found.name: heldout_texts(found, config.data) for found in records}
    found = find_contamination(texts, shards)
    for of_task in found:
        progress.note(of_task.in_words())
    refused = [of_task for of_task in found if of_task.share > config.max_contamination]
    if refused:
        raise EvaluationError(
            "supervised: the corpus has the development or test sets of tasks. "
            + "\n".join(f"{of_task.in_words()}, such as {of_task.examples[0]!r}" for of_task in refused)
            + f"\nAllowed is a share of supervised.max_contamination={config.max_contamination:g}: take these texts "
            "out of the corpus, leave the task out of the mix, or raise the limit and do not trust its scores"
        )
    partial = open_partial(paths.contamination, recipe)
    write_atomic(partial / CONTAMINATION, json.dumps([entry.model_dump() for entry in found], indent=2) + "\n")
    statistics = {entry.task: {"exact": entry.exact, "near": entry.near, "texts": entry.texts} for entry in found}
    inputs = [InputFile(uri=uri, bytes=size, modified_ns=time) for uri, size, time in recipe.inputs]
    manifest = build_manifest(recipe, describe_files(partial), statistics=statistics, inputs=inputs)
    publish(partial, paths.contamination, manifest)


def read_contamination(paths: RowsDir) -> list[Contamination]:
    """Return what was found; nothing if nothing was compared."""
    file = paths.contamination / CONTAMINATION
    return [Contamination(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def heldout_texts(found: TaskRecords, data: Path) -> list[str]:
    """Return the texts of the whole development and test sets of a task, those of a pair as one."""
    task, splits = found.task, found.splits
    files = [file for file in (task.dev, task.test) if file is not None]
    records: list[Record] = [record for file in files for record in read_data_file(data / file)]
    return [" ".join(texts_of(task, record)) for record in (records if files else splits.dev)]
