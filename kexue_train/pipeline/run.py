"""All stages of a run in data order, without an orchestrator; ``flows/pretrain_pipeline.py`` runs the same ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol

from kexue_train.executor import Executor, LocalExecutor, RayExecutor, connect_ray
from kexue_train.foundation.artifacts import MANIFEST_NAME, read_manifest, write_atomic
from kexue_train.foundation.background import run_in_thread
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import available_cpus
from kexue_train.pipeline.completion import record_complete
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stage_result import StageResult, describe
from kexue_train.train.job import JobConfig, TrainDir


class Run:
    """A run in work: its configuration, its folder, and where its tasks run.

    Args:
        config: The configuration.
        folder: The folder.
        model: What is evaluated, if it is not the run's own exported model.
    """

    def __init__(self, config: RunConfig, folder: RunDir, model: Path | None = None) -> None:
        self.config, self.folder = config, folder
        self.model = model or folder.hf
        self.evaluation = folder.evaluation_of(model) if model else folder.evaluate

    @cached_property
    def executor(self) -> Executor:
        """Where the tasks of the data stages run; connected when first used."""
        execution = self.config.execution
        workers = execution.num_workers or available_cpus()
        if execution.tasks == "local":
            return LocalExecutor(workers)
        return RayExecutor(
            execution.ray_address,
            max(workers, self.config.train.num_workers),
            custom_resource=execution.data_resource,
            timeout=execution.cluster_timeout,
        )

    @property
    def job(self) -> JobConfig:
        """The sections that training needs."""
        config = self.config
        return JobConfig(seed=config.seed, model=config.model, optimizer=config.optimizer, train=config.train)

    @property
    def sample_folders(self) -> dict[int, Path]:
        """The samples that training needs, by length."""
        return self.folder.sample_folders(self.config.samples.seq_len, self.config.train.seq_lens)

    @property
    def samples(self) -> Path:
        """What training reads."""
        return self.folder.samples_of_all_lengths if len(self.sample_folders) > 1 else self.folder.samples

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the shuffle reads."""
        made = self.config.corpus.source == "installed_docs"
        return (str(self.folder.corpus / "documents.jsonl"),) if made else self.config.corpus.inputs


def make_corpus(run: Run, progress: Progress) -> Path:
    """Turn the installed documentation into a corpus, if the configuration asks for it."""
    from kexue_train.corpus.installed_docs import build_docs_corpus  # noqa: PLC0415  # a stage loads what it needs

    if run.config.corpus.source == "installed_docs":
        build_docs_corpus(run.config.corpus, run.folder.corpus, replace=True, progress=progress)
    return run.folder.corpus


def shuffle(run: Run, progress: Progress) -> Path:
    """Put the corpus on disk in uniformly random order."""
    from kexue_train.shuffle.shuffle_corpus import shuffle_corpus  # noqa: PLC0415  # a stage loads what it needs

    config, out = run.config, run.folder.shards
    shuffle_corpus(
        config.shuffle, run.inputs, out, seed=config.seed, executor=run.executor, replace=True, progress=progress
    )
    return out


def tokenizer(run: Run, progress: Progress) -> Path:
    """Train the vocabulary."""
    from kexue_train.samples.tokenizer import train_tokenizer  # noqa: PLC0415  # a stage loads what it needs

    train_tokenizer(run.config.tokenizer, run.folder.shards, run.folder.tokenizer, replace=True, progress=progress)
    return run.folder.tokenizer


def samples(run: Run, progress: Progress) -> Path:
    """Make packed rows of sentence pairs, of every length that training needs."""
    from kexue_train.samples.build_samples import build_samples  # noqa: PLC0415  # a stage loads what it needs

    config, folder = run.config, run.folder
    for seq_len, out in run.sample_folders.items():
        build_samples(
            config.samples.model_copy(update={"seq_len": seq_len}),
            folder.shards,
            folder.tokenizer,
            out,
            seed=config.seed,
            executor=run.executor,
            replace=True,
            progress=progress,
        )
    if len(run.sample_folders) > 1:
        write_atomic(run.samples, "".join(f"{out.name}: 1\n" for out in run.sample_folders.values()))
    return folder.samples


def train(run: Run, progress: Progress) -> Path:
    """Pretrain the encoder."""
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415  # the same
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415  # a stage loads what it needs

    folder = run.folder
    launch = launcher_of(run.job, folder.config, run.samples, folder.pretrain, run.config.execution)
    pretrain(run.job, run.samples, folder.pretrain, launch=launch, replace=True, progress=progress)
    return folder.pretrain


def export(run: Run, progress: Progress) -> Path:
    """Write the Hugging Face folder."""
    from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # a stage loads what it needs

    export_hf(last_checkpoint(run.folder.pretrain), run.folder.hf, replace=True, progress=progress)
    return run.folder.hf


def evaluate(run: Run, progress: Progress) -> Path:
    """Score the exported model on the held-out rows."""
    from kexue_train.downstream.evaluate.evaluate_model import evaluate_model  # noqa: PLC0415  # a stage loads what it needs

    config, folder = run.config, run.folder
    run.evaluation.parent.mkdir(exist_ok=True)
    evaluate_model(
        config.evaluate, run.model, folder.samples, run.evaluation, seed=config.seed, replace=True, progress=progress
    )
    return run.evaluation


def report(run: Run, progress: Progress) -> Path:  # noqa: ARG001  # takes no time
    """Write the page about the run."""
    from kexue_train.report.build_report import build_report  # noqa: PLC0415  # a stage loads what it needs

    return build_report(run.folder.root).parent


class StageEnd(Protocol):
    """Where the end of a stage is shown."""

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """A stage is complete."""
        ...


Stage = Callable[[Run, Progress], Path]

STAGES: dict[str, Stage] = {
    "corpus": make_corpus,
    "shuffle": shuffle,
    "tokenizer": tokenizer,
    "samples": samples,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "report": report,
}


def open_run(config: RunConfig, root: Path, *, fresh: bool = False) -> Run:
    """Claim the run folder ``root`` for ``config``; ``fresh`` empties it first. Hold ``folder.lock()`` around the work.

    Raises:
        ArtifactError: If the folder belongs to another run, or is no run folder.
    """
    folder = RunDir(root)
    if fresh:
        folder.empty()
    folder.claim(config.name, config.to_yaml())
    return Run(config, folder)


def show_complete(run: Run, board: StageEnd) -> None:
    """Say of every stage that it is complete; for a run of which ``is_complete`` is true."""
    for name in STAGES:
        path = _folder_of(run, name)
        manifest = read_manifest(path) if (path / MANIFEST_NAME).exists() else None
        board.finish(name, describe(name, manifest, run.folder, run.sample_folders), 0.0, made=False)


def run_stage(name: str, run: Run, progress: Progress) -> StageResult:
    """Run one stage, or find it complete, and record it in the run folder."""
    started, clock = time.time(), time.perf_counter()
    before = _made_at(run, name)
    path = STAGES[name](run, progress)
    seconds = time.perf_counter() - clock
    made = name == "report" or _made_at(run, name) != before
    manifest = read_manifest(path) if (path / MANIFEST_NAME).exists() else None
    if name == "report":
        record_complete(run.config, run.folder)
    if made:
        rows, size = (manifest.rows, manifest.bytes) if manifest else (0, 0)
        run.folder.record_stage(stage=name, started=started, seconds=seconds, rows=rows, bytes=size, status="made")
    summary = describe(name, manifest, run.folder, run.sample_folders)
    return StageResult(name, made, seconds, summary, manifest, path)


def train_beside(run: Run, progress: Progress, *, meanwhile: Callable[[], None]) -> StageResult:
    """Run the stage ``train`` in a thread; a signal that raises in this one makes it save a checkpoint and end.

    Args:
        run: The run.
        progress: Receives steps and metrics, in the thread.
        meanwhile: Called here, several times a second.

    Raises:
        BaseException: What the signal's handler raised; training has ended or had ``train.faults.stop_timeout`` for it.
    """
    if run.config.train.workers.launcher == "ray":  # a local Ray ends with the thread that has started it
        connect_ray(run.config.execution.ray_address, max(available_cpus(), run.config.train.num_workers))
    stop = TrainDir(run.folder.pretrain).stop

    def request_stop() -> None:
        if stop.parent.is_dir():
            stop.touch()

    return run_in_thread(
        lambda: run_stage("train", run, progress),
        on_poll=meanwhile,
        request_stop=request_stop,
        stop_seconds=run.config.train.faults.stop_timeout,
    )


def last_checkpoint(pretrain_dir: Path) -> Path:
    """The checkpoint that a finished training ended with.

    Raises:
        ArtifactError: If training is not finished.
    """
    manifest = read_manifest(pretrain_dir)
    if "checkpoint" not in manifest.statistics:
        raise ArtifactError(f"{pretrain_dir}: is no finished training; run 'kexue train' first")
    return pretrain_dir / str(manifest.statistics["checkpoint"])


def _folder_of(run: Run, name: str) -> Path:
    folder = run.folder
    named = {"train": folder.pretrain, "export": folder.hf, "shuffle": folder.shards, "evaluate": run.evaluation}
    return named.get(name, folder.root / name)


def _made_at(run: Run, name: str) -> list[int]:
    folders = run.sample_folders.values() if name == "samples" else [_folder_of(run, name)]
    manifests = [folder / MANIFEST_NAME for folder in folders]
    return [manifest.stat().st_mtime_ns for manifest in manifests if manifest.exists()]
