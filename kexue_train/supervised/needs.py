"""What the stage needs, named without reading it: tasks of the mix, folders, and the recipe of what lies in each.

Loads no torch, since a complete run has to be found without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kexue_train.downstream.finetune.tasks.task import SupervisedTask, load_known_tasks, parse_supervised_task
from kexue_train.downstream.task_files import read_task_file
from kexue_train.foundation.artifacts import Manifest, Recipe, read_manifest
from kexue_train.foundation.errors import ConfigError, EvaluationError
from kexue_train.samples.labelled_rows import KIND
from kexue_train.samples.task_kinds import TASK_KINDS
from kexue_train.supervised.config import SupervisedConfig

SIZE = 10
"""Letters and digits of a shingle; see ``contamination.py``."""
NEAR = 0.8
"""Share of a text's different shingles that a document must have."""
SHORTEST = 20
"""Letters and digits of the shortest text that is looked for."""
CONTAMINATION = "contamination.json"


class RowsDir:
    """Where the stage keeps what it trains on: beside the folder that it trains in.

    Attributes:
        root: The folder.
    """

    def __init__(self, training: Path) -> None:
        self.root = training.with_name(f"{training.name}-rows")

    def rows(self, task: str) -> Path:
        """Labelled rows of a task."""
        return self.root / "rows" / task

    @property
    def contamination(self) -> Path:
        """What the corpus has of the tasks' texts."""
        return self.root / "contamination"

    @property
    def mix(self) -> Path:
        """The list of folders with their shares, which training reads."""
        return self.root / "mix.yaml"


def max_length_of(task: SupervisedTask, config: SupervisedConfig, longest: int) -> int:
    """Return the tokens of a sequence of ``task``, at most ``longest``."""
    return min(config.max_length or task.max_length, longest)


def recipes(
    config: SupervisedConfig, samples: Path, shards: Path | None, paths: RowsDir, *, longest: int, seed: int
) -> dict[Path, Recipe]:
    """Return what determines the rows of every task, and the comparison with the corpus if there is one.

    Raises:
        KexueError: If a task is not known, or an input is missing.
    """
    tasks = load_tasks(config)
    found = {
        paths.rows(name): rows_recipe(
            name, task, config, samples, max_length=max_length_of(task, config, longest), seed=seed
        )
        for name, task in tasks.items()
    }
    if shards is not None and tasks:
        found[paths.contamination] = _contamination_recipe(config, tasks, shards, list(found.values()))
    return found


def load_tasks(config: SupervisedConfig) -> dict[str, SupervisedTask]:
    """Return the labelled tasks of the mix by name.

    Raises:
        ConfigError: Names every task that is not known or cannot be mixed.
    """
    known = load_known_tasks()
    for file in config.tasks:
        known |= read_task_file(file, parse_supervised_task)
    faults = [
        f"there is no task {name!r}; describe it in a YAML file of supervised.tasks, or take one of {', '.join(known)}"
        for name in config.task_names
        if name not in known
    ]
    tasks = {name: known[name] for name in config.task_names if name in known}
    faults += [
        f"{name} is of kind {task.kind}, which cannot be mixed; kinds that can are {', '.join(TASK_KINDS)}"
        for name, task in tasks.items()
        if task.kind not in TASK_KINDS
    ]
    if faults:
        raise ConfigError("supervised.mix: " + "; ".join(faults))
    return tasks


def require_tasks(config: SupervisedConfig) -> None:
    """Refuse before pretraining what the stage would refuse after it: unknown tasks, missing files; reads no record.

    Raises:
        KexueError: Names all of them.
    """
    faults = []
    for name, task in load_tasks(config).items():
        try:
            _find_files(name, task, config.data)
        except EvaluationError as error:
            faults.append(str(error))
    if faults:
        raise EvaluationError("\n".join(faults))


def _find_files(name: str, task: SupervisedTask, data: Path) -> dict[str, os.stat_result]:
    found = {}
    for file in (task.train, task.dev, task.test):
        if file is not None:
            try:
                found[file] = (data / file).stat()
            except OSError as error:
                raise EvaluationError(
                    f"{name}: {data / file} cannot be read ({error.strerror}); give the folder that the tasks' paths "
                    "start from as supervised.data"
                ) from None
    return found


def rows_recipe(
    name: str, task: SupervisedTask, config: SupervisedConfig, samples: Path, *, max_length: int, seed: int
) -> Recipe:
    """Return what determines the rows of a task; looks at its files without reading them.

    Raises:
        EvaluationError: If a file is missing.
    """
    inputs = [
        (file, status.st_size, status.st_mtime_ns) for file, status in _find_files(name, task, config.data).items()
    ]
    settings = {
        "name": name,
        "task": task.model_dump(mode="json"),
        "max_length": max_length,
        "max_train": config.max_train,
        "max_heldout": config.max_heldout,
        "seed": seed,
    }
    return Recipe(kind=KIND, settings=settings, parents=_tokenizer_of(read_manifest(samples)), inputs=inputs)


def _tokenizer_of(samples: Manifest) -> dict[str, str]:
    return {"tokenizer": samples.parents["tokenizer"]} if "tokenizer" in samples.parents else {}


def _contamination_recipe(
    config: SupervisedConfig, tasks: Mapping[str, SupervisedTask], shards: Path, rows: Sequence[Recipe]
) -> Recipe:
    inputs = sorted({entry for recipe in rows for entry in recipe.inputs})
    settings = {"size": SIZE, "near": NEAR, "shortest": SHORTEST, "tasks": list(tasks)}
    settings["max_contamination"] = config.max_contamination
    parents = {"text_shards": read_manifest(shards).content_digest}
    return Recipe(kind="contamination", settings=settings, parents=parents, inputs=inputs)
