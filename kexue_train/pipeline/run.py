"""A run: its stages made one after the other, each recorded; ``flows/pretrain_pipeline.py`` makes the same ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest, read_manifest
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.foundation.stage import Stage
from kexue_train.foundation.traces import untouched_if_refused
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import REPORT, stages_of
from kexue_train.shuffle.kept_keys import name_keys
from kexue_train.shuffle.rejected_records import REJECTED
from kexue_train.supervised.needs import require_tasks
from kexue_train.supervised.stage import SUPERVISE

_DATA = ("corpus", "text_shards", "sample_shards")


@dataclass(frozen=True)
class Run:
    """A run in work: its configuration and its folder."""

    config: RunConfig
    folder: RunDir

    def folder_of(self, stage: Stage[RunConfig]) -> Path:
        """Return where ``stage`` leaves what it makes."""
        return self.folder.root / stage.folder

    def inputs_of(self, stage: Stage[RunConfig]) -> tuple[Path, ...]:
        """Return the folders of the stages that ``stage`` reads, as far as the run has them."""
        folders = {other.name: self.folder_of(other) for other in stages_of(self.config)}
        return tuple(folders[name] for name in stage.reads if name in folders)

    def is_complete(self, stage: Stage[RunConfig]) -> bool:
        """Return whether ``stage`` has nothing left to do; reads small files only."""
        if not stage.is_wanted(self.config):
            return True
        return stage.is_complete(self.config, self.inputs_of(stage), self.folder_of(stage))


@dataclass(frozen=True)
class StageResult:
    """What a stage did."""

    stage: str
    made: bool
    """False if it was complete before."""
    seconds: float
    summary: str
    manifest: Manifest | None
    folder: Path
    """Where it lies."""

    @property
    def facts(self) -> dict[str, str]:
        """The result as a table: rows, bytes, speed, checksum, as far as the stage has them."""
        facts = {"result": self.summary}
        facts["time"] = format_seconds(self.seconds) if self.made else "complete before"
        if self.manifest is not None:
            facts |= {"rows": f"{self.manifest.rows:,}"} if self.manifest.rows else {}
            facts["bytes"] = format_size(self.manifest.bytes)
            if self.made and self.manifest.kind in _DATA:
                facts["speed"] = f"{format_size(self.manifest.bytes / self.seconds)}/s"
            if rejected := self.manifest.describe_rejected():
                facts["rejected"] = f"{rejected}, kept in {self.folder / REJECTED}"
            if unread := self.manifest.statistics.get("unread_keys"):
                facts["keys not kept"] = name_keys(unread)
            if self.manifest.rows_checksum:
                facts["checksum of the rows"] = self.manifest.rows_checksum.output
            facts["digest"] = self.manifest.content_digest
        return facts | {"folder": str(self.folder)}


def open_run(config: RunConfig, root: Path, *, fresh: bool = False) -> Run:
    """Claim the run folder ``root`` for ``config``; ``fresh`` empties it first. Hold ``folder.lock()`` around the work.

    Raises:
        ArtifactError: If the folder belongs to another run, or is no run folder.
        KexueError: If the supervised stage is still to be made and would find a task or a file missing.
    """
    folder = RunDir(root)
    if config.supervised and (fresh or not Run(config, folder).is_complete(SUPERVISE)):
        require_tasks(config.supervised)
    if fresh:
        folder.empty()
    folder.claim(config.name, config.to_yaml())
    return Run(config, folder)


def is_complete(run: Run) -> bool:
    """Return whether every stage of ``run`` is complete, with inputs and settings as they are now."""
    return all(run.is_complete(stage) for stage in stages_of(run.config))


@dataclass(frozen=True)
class StageWork:
    """One making of a stage: ``make`` is called between ``begin_stage`` and ``finish``."""

    stage: Stage[RunConfig]
    run: Run
    inputs: Sequence[Path]
    """The folders that it is given."""
    out: Path
    """Where it writes."""
    is_needed: bool
    """False if it was complete before."""
    started: float
    """Seconds since 1970."""
    clock: float

    def make(self, progress: Progress) -> None:
        """Do the work; if it is refused, nothing is left of what it began."""
        with untouched_if_refused(self.out):
            self.stage.make(self.run.config, self.inputs, self.out, progress)

    def finish(self) -> StageResult:
        """Record the stage in the run folder if it was made, and return what it did."""
        seconds, out = time.perf_counter() - self.clock, self.out
        manifest = read_manifest(out) if (out / MANIFEST_NAME).exists() else None
        if self.is_needed:
            rows, size = (manifest.rows, manifest.bytes) if manifest else (0, 0)
            self.run.folder.record_stage(
                stage=self.stage.name, started=self.started, seconds=seconds, rows=rows, bytes=size, status="made"
            )
        summary = self.stage.describe(self.run.config, out)
        return StageResult(self.stage.name, self.is_needed, seconds, summary, manifest, out)


def begin_stage(
    stage: Stage[RunConfig], run: Run, inputs: Sequence[Path] | None = None, out: Path | None = None
) -> StageWork:
    """Look whether ``stage`` has to be made, and start its clock.

    Args:
        stage: The stage.
        run: The run.
        inputs: The folders that it is given; by default those of the stages that it reads.
        out: Where it writes; by default its folder in the run folder.
    """
    inputs, out = run.inputs_of(stage) if inputs is None else inputs, out or run.folder_of(stage)
    is_needed = stage is REPORT or not stage.is_complete(run.config, inputs, out)
    return StageWork(stage, run, inputs, out, is_needed, time.time(), time.perf_counter())


def run_stage(
    stage: Stage[RunConfig], run: Run, progress: Progress, *, inputs: Sequence[Path] | None = None
) -> StageResult:
    """Make ``stage``, or find it complete, and record it in the run folder; for the arguments see ``begin_stage``."""
    work = begin_stage(stage, run, inputs)
    work.make(progress)
    return work.finish()
