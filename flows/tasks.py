"""One Prefect task per stage: retries and artifacts around the library's stage function."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from kexue_train.errors import KexueError
from kexue_train.pipeline import Run, StageResult, run_stage
from kexue_train.runtime import format_seconds, format_size
from kexue_train.terminal import StageBoard

_ARTIFACT_INTERVAL_SECONDS = 5.0


class Workshop:
    """What the tasks of one flow run share. A plain class, so that Prefect does not look into it."""

    def __init__(self, run: Run, board: StageBoard) -> None:
        self.run, self.board = run, board


class ArtifactProgress:
    """Progress for the terminal and, every few seconds, for a Prefect progress artifact."""

    def __init__(self, stage: str, board: StageBoard) -> None:
        self._board, self._sent = board, time.monotonic()
        self._artifact: Any = create_progress_artifact(0.0, key=f"{stage}-progress", description=f"Progress of {stage}")

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """See ``kexue_train.progress.Progress``."""
        self._board.update(done, total, unit, **facts)
        if total and time.monotonic() - self._sent >= _ARTIFACT_INTERVAL_SECONDS:
            self._send(min(100.0, 100.0 * done / total))

    def note(self, message: str) -> None:
        """See ``kexue_train.progress.Progress``."""
        self._board.note(message)

    def complete(self) -> None:
        """The stage is done."""
        self._send(100.0)

    def _send(self, percent: float) -> None:
        self._sent = time.monotonic()
        assert isinstance(self._artifact, UUID)
        update_progress_artifact(self._artifact, percent)


def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass by itself; not what the user has to correct."""
    return not _is_mistake(state.result(raise_on_failure=False))


def _is_mistake(error: object) -> bool:
    return isinstance(error, KexueError) and error.exit_code == KexueError.exit_code


def stage_task(name: str) -> Task[[Workshop], None]:
    """The Prefect task of the stage ``name``."""

    @task(
        name=name,
        retries=1,
        retry_delay_seconds=5,
        retry_condition_fn=is_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
        tags=["kexue_train", name],
    )
    def run(workshop: Workshop) -> None:
        board = workshop.board
        board.start(name)
        progress = ArtifactProgress(name, board)
        try:
            result = run_stage(name, workshop.run, progress)
        except Exception as error:
            if not _is_mistake(error):  # it may be tried again, which should not go unseen
                board.note(f"failed: {type(error).__name__}: {error}")
            raise
        progress.complete()
        create_markdown_artifact(markdown=summary_of(result), key=f"{name}-summary", description=f"What {name} made")
        board.finish(name, result.summary, result.seconds, made=result.made)

    return run


def summary_of(result: StageResult) -> str:
    """A stage's result as a small Markdown table."""
    rows = [("result", result.summary), ("time", format_seconds(result.seconds) if result.made else "complete before")]
    if result.manifest is not None:
        rows += [("rows", f"{result.manifest.rows:,}"), ("bytes", format_size(result.manifest.bytes))]
        if result.manifest.rows_checksum:
            rows.append(("checksum of the rows", result.manifest.rows_checksum.output))
    return f"### {result.stage}\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
