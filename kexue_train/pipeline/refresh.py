"""New documents for a trained model: they are shuffled and sampled by themselves, and training continues with them.

Each time new files are found they become a *generation*, a run folder of its own in ``RUN/generations``: text shards
and samples of the new files alone, made with the run's tokenizer and seed, and a training that starts with the last
weights of the generation before. The run itself is the first one. Nothing that was there is made again.
"""

from __future__ import annotations

import glob
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.mixture import WINDOW
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.corpus.remote import is_uri
from kexue_train.foundation.artifacts import MANIFEST_NAME, Recipe, read_manifest, write_atomic
from kexue_train.foundation.config_file import apply_overrides
from kexue_train.foundation.credentials import is_masked, without_credentials
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import Run
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.samples.build_samples import list_of_lengths
from kexue_train.train.config import RENAMED_KEYS
from kexue_train.train.initial_weights import digest_of_weights
from kexue_train.train.job import TrainDir
from kexue_train.train.stage import last_checkpoint

_SMALLEST_WEIGHT = 2 / WINDOW
"""The smallest share of a folder in a mixture, which gives each folder at least one position of a window."""
_WARMUP_SHARE, _FINAL_MULTIPLIER = 0.05, 0.1


@dataclass(frozen=True)
class Generation:
    """A run that trains on, with new documents and old ones."""

    run: Run
    before: tuple[RunDir, ...]
    """The first run and its earlier generations, first to last."""

    @property
    def mixture(self) -> Path:
        """The list of new and old sample folders with their shares, which training reads."""
        return list_of_lengths(self.run.folder.samples)


@dataclass(frozen=True)
class Arrivals:
    """The input files that were not read yet, and those that changed afterwards."""

    new: list[Source]
    changed: list[Source]
    """Read once, and changed since; their old text cannot be taken out of a model, so they are left alone."""


def find_arrivals(
    config: RunConfig, inputs: Sequence[str], before: Sequence[RunDir], progress: Progress = SILENT
) -> Arrivals:
    """Compare the files that ``inputs`` name with those in the manifests of the shards of ``before``.

    What is not read among them is told to ``progress``. A glob or folder without any file is fine; a file that is not
    there is not.

    Raises:
        ConfigError: If ``inputs`` names nothing, or the configuration weighs inputs, of which new files are none.
        CorpusError: If a file cannot be read or has no known format.
    """
    if config.corpus.sources:
        raise ConfigError(
            "corpus.sources is a mixture, and of which source new files are nobody says; train again on all of it, or "
            "start a run of its own on the new files from the last checkpoint (train.init_from)"
        )
    if not inputs:
        raise ConfigError("no inputs to look for new files in; name files, folders or globs")
    if config.shuffle.weights:
        raise ConfigError("shuffle.weights name inputs, and new files have no weight there; remove shuffle.weights")
    shuffle, patterns = config.shuffle, [pattern for pattern in inputs if _names_something(pattern)]
    sources = (
        find_inputs(patterns, format=shuffle.format, document=shuffle.document, note=progress.note) if patterns else []
    )
    known = {
        without_credentials(entry.uri): (entry.bytes, entry.modified_ns)
        for folder in before
        for entry in read_manifest(folder.shards).inputs
    }
    found = [(without_credentials(source.path), (source.bytes, source.modified_ns), source) for source in sources]
    return Arrivals(
        new=[source for name, _, source in found if name not in known],
        changed=[source for name, state, source in found if known.get(name, state) != state],
    )


def next_generation(
    config: RunConfig,
    root: Path,
    *,
    inputs: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Generation | None:
    """Return the generation to work on: an interrupted one, or a new one for files that have arrived; else None.

    Hold the run folder's lock around it. Its stages ``shuffle`` and ``samples`` come next, then ``plan_training``.

    Args:
        config: The run's configuration.
        root: The run's folder.
        inputs: Where new files arrive; by default ``corpus.inputs``.
        progress: Receives what was found.

    Raises:
        ArtifactError: If the run has no finished training.
        ConfigError: As in ``find_arrivals``.
        CorpusError: As in ``find_arrivals``.
    """
    done, unfinished = _generations(RunDir(root), progress)
    if unfinished is not None:
        documents = _with_credentials(RunConfig.load(unfinished.config).corpus.inputs, config, inputs)
        progress.note(f"resuming generation {unfinished.root.name}, {len(documents)} new files")
        return _open(config, unfinished, done, documents)
    arrivals = find_arrivals(config, inputs or config.corpus.inputs, done, progress)
    if arrivals.changed:
        progress.note(
            f"{len(arrivals.changed)} files were changed since they were read, such as {arrivals.changed[0].path}; "
            "they are left alone: put additions into new files, or train again on all of them"
        )
    if not arrivals.new:
        return None
    folder = RunDir(RunDir(root).generations / str(len(done) + 1))
    progress.note(f"generation {folder.root.name}: {len(arrivals.new)} new files")
    return _open(config, folder, done, [source.path for source in arrivals.new])


def plan_training(generation: Generation, *, replay: float = 0.5, overrides: Sequence[str] = ()) -> Generation:
    """Write which samples the generation trains on and for how long; its own samples must be there.

    A step reads ``1 - replay`` new rows and ``replay`` old ones, the old ones in proportion to their folders, and
    there are as many steps as it takes to read every new row once. The learning rate warms up again over the first
    twentieth and falls to a tenth.

    Args:
        generation: The generation.
        replay: Share of old rows, in [0, 1); without them a model forgets what it read.
        overrides: ``section.key=value`` texts; those of ``train`` and ``optimizer`` win.

    Raises:
        ConfigError: If ``replay`` is out of range or an override is wrong.
    """
    if not 0 <= replay < 1:
        raise ConfigError(f"replay={replay} is not a share of old rows; give a number of at least 0 and below 1")
    folder, config = generation.run.folder, generation.run.config
    new_rows = SampleDataset(folder.samples).num_training_rows
    old = {earlier.samples: SampleDataset(earlier.samples).num_training_rows for earlier in generation.before}
    weights = {folder.samples: 1.0 - replay}
    if replay:
        weights |= {samples: max(_SMALLEST_WEIGHT, replay * rows / sum(old.values())) for samples, rows in old.items()}
    lines = [f"{os.path.relpath(samples, folder.root)}: {weight!r}" for samples, weight in weights.items()]
    write_atomic(generation.mixture, "\n".join(lines) + "\n")
    batch = config.train.global_batch_size
    steps = max(1, math.ceil(new_rows / (1 - replay) / batch))
    values = config.model_dump(mode="json")
    values["train"]["steps"] = steps
    values["optimizer"]["schedule"] = {max(1, round(_WARMUP_SHARE * steps)): 1.0} | (
        {steps: _FINAL_MULTIPLIER} if steps > 1 else {}
    )
    chosen = [override for override in overrides if override.startswith(("train.", "optimizer."))]
    planned = RunConfig.parse(apply_overrides(values, chosen, RENAMED_KEYS), where=str(folder.config))
    folder.claim(planned.name, planned.to_yaml())
    return Generation(Run(planned, folder), generation.before)


def _with_credentials(documents: Sequence[str], config: RunConfig, inputs: Sequence[str]) -> Sequence[str]:
    """Return ``documents`` of a configuration that was written, with the credentials that ``inputs`` give them now."""
    if not any(map(is_masked, documents)):
        return documents
    shuffle = config.shuffle
    sources = find_inputs(inputs or config.corpus.inputs, format=shuffle.format, document=shuffle.document)
    given = {without_credentials(source.path): source.path for source in sources}
    return [given.get(without_credentials(document), document) for document in documents]


def _names_something(pattern: str) -> bool:
    if is_uri(pattern) or pattern.startswith("@"):
        return True
    if glob.has_magic(pattern):
        return bool(glob.glob(pattern, recursive=True))  # noqa: PTH207  # patterns may be absolute
    path = Path(pattern)
    return not path.is_dir() or any(not part.name.startswith(".") for part in path.iterdir())


def _generations(run: RunDir, progress: Progress) -> tuple[list[RunDir], RunDir | None]:
    """Return the run with its finished generations, and the one that was begun after them."""
    if not (run.pretrain / MANIFEST_NAME).exists():
        raise ArtifactError(f"{run.root}: has no finished training to continue; finish the run first")
    last_checkpoint(run.pretrain)
    _move_aside_of_another(run, progress)
    done = [run]
    while (folder := RunDir(run.generations / str(len(done) + 1))).config.exists():
        if not (folder.report / "index.html").exists():
            return done, folder
        done.append(folder)
    return done, None


def _move_aside_of_another(run: RunDir, progress: Progress) -> None:
    """Put the generations aside if the first training was repeated since: they continue weights that are gone."""
    first = RunDir(run.generations / "2")
    recipe = TrainDir(first.pretrain).recipe
    if not recipe.exists():
        return
    parents = Recipe.model_validate_json(recipe.read_text(encoding="utf-8")).parents
    if parents.get("init_from") == digest_of_weights(last_checkpoint(run.pretrain)):
        return
    number = 1
    while (aside := run.generations.with_name(f"{run.generations.name}.replaced-{number}")).exists():
        number += 1
    run.generations.rename(aside)
    progress.note(f"the run was trained again after its generations had continued it; they are kept in {aside}")


def _open(config: RunConfig, folder: RunDir, before: Sequence[RunDir], documents: Sequence[str]) -> Generation:
    values = config.model_dump(mode="json")
    phase = config.train.phase_settings[-1]
    values["corpus"] |= {"source": "files", "inputs": list(documents)}
    values["train"] |= {
        "phases": [],
        "steps": config.train.steps,
        "global_batch_size": phase.global_batch_size,
        "micro_batch_size": phase.micro_batch_size,
        "init_from": str(last_checkpoint(before[-1].pretrain)),
    }
    values["train"]["objective"]["residual_ramp_steps"] = 0
    values["supervised"] = None  # a generation is pretraining; 'kexue supervise' starts from its checkpoint
    parsed = RunConfig.parse(values, where=str(folder.config))
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.claim(parsed.name, parsed.to_yaml())
    _copy_tokenizer(before[0].tokenizer, folder.tokenizer)
    return Generation(Run(parsed, folder), tuple(before))


def _copy_tokenizer(tokenizer: Path, copy: Path) -> None:
    """Give a generation the vocabulary of the run, so that rows of all generations can be mixed and the weights fit."""
    if (copy / MANIFEST_NAME).exists() and read_manifest(copy) == read_manifest(tokenizer):
        return
    aside = copy.with_name(f".{copy.name}.copy")
    for stale in (aside, copy):
        shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(tokenizer, aside)
    aside.rename(copy)
