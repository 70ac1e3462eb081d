"""Show a run on Prefect's page: progress, tables, links. Progress does not wait for a server that cannot be reached."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from kexue_train.cli.terminal import StageBoard
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.run import Run, StageResult
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.report.summary import summarise
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.events import TrainingEvent, TrainingWatch

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 5.0
_PAUSE_SECONDS = 60.0
"""After an attempt that failed, which may itself have taken seconds."""
_EVENTS = {"checkpoint_saved": "kexue.checkpoint.saved", "loss_nonfinite": "kexue.loss.nonfinite"}


def quietly(send: Callable[[], Any]) -> Any:
    """Return what ``send`` returns; None if the server cannot be reached, since the work does not depend on it."""
    try:
        return send()
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        logger.warning("the Prefect server did not accept an artifact (%s: %s)", type(error).__name__, error)
        return None


class ArtifactProgress:
    """Progress for the terminal and, every few seconds, for a Prefect progress artifact.

    A stage that takes less than that costs one request, at its end.
    """

    def __init__(self, stage: str, board: StageBoard) -> None:
        self._stage, self._board, self._percent = stage, board, 0.0
        self._due = time.monotonic() + _INTERVAL_SECONDS
        self._artifact: UUID | None = None

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Show progress and send it to Prefect every few seconds; the arguments are those of ``Progress.update``."""
        self.show(done, total, unit, **facts)
        self.send_if_due()

    def show(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Show progress without sending it; the arguments are those of ``Progress.update``."""
        self._board.update(done, total, unit, **facts)
        if total:
            self._percent = min(100.0, 100.0 * done / total)

    def note(self, message: str) -> None:
        """Show a message."""
        self._board.note(message)

    def send_if_due(self) -> bool:
        """Send the artifact if some seconds have passed since the last time; return whether it was sent."""
        if time.monotonic() < self._due:
            return False
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # the next one tells the same and more
            was_sent = self._send()
        self._due = time.monotonic() + (_INTERVAL_SECONDS if was_sent else _PAUSE_SECONDS)
        return was_sent

    def complete(self) -> None:
        """Show that the stage is complete."""
        self._percent = 100.0
        self._send()

    def _send(self) -> bool:
        if artifact := self._artifact:
            return quietly(lambda: update_progress_artifact(artifact, self._percent)) is not None
        self._artifact = quietly(self._create)
        return self._artifact is not None

    def _create(self) -> UUID:
        key, description = f"{self._stage}-progress", f"Progress of {self._stage}"
        return create_progress_artifact(self._percent, key=key, description=description)


class TrainingArtifacts:
    """Sends progress, key metrics over time and events of a training that runs in another thread."""

    def __init__(self, run: Run, stage: Stage[RunConfig], board: StageBoard) -> None:
        self._run, self._progress = run, ArtifactProgress(stage.name, board)
        self._watch = TrainingWatch(TrainDir(run.folder_of(stage)))
        self._metrics: Any = None

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Show progress; the arguments are those of ``Progress.update``. Call it in the thread that trains."""
        self._progress.show(done, total, unit, **facts)

    def note(self, message: str) -> None:
        """Show a message. Call it in the thread that trains."""
        self._progress.note(message)

    def send(self) -> None:
        """Send what is new. Call it in the thread that waits for the training."""
        for event in self._watch.read():
            emit_training_event(event, self._run)
        if self._progress.send_if_due():
            self._send_metrics()

    def send_failure(self) -> None:
        """Send the reason why training failed, if automations react to it."""
        if event := self._watch.read_failure():
            emit_training_event(event, self._run)

    def complete(self) -> None:
        """Show that the training has ended."""
        self._progress.complete()
        self._send_metrics()

    def _send_metrics(self) -> None:
        if not (table := self._watch.table()):
            return
        if self._metrics is None:
            self._metrics = quietly(
                lambda: create_table_artifact(table, key="train-metrics", description="Key metrics over time")
            )
        else:
            quietly(lambda: _replace_table(self._metrics, table))


def _replace_table(artifact: UUID, table: list[dict[str, str]]) -> None:
    """Update the artifact: a new one every few seconds would make a hundred thousand in a week."""
    client = get_client(sync_client=True)
    client.update_artifact(artifact, ArtifactUpdate(data=json.dumps(table)))


def emit_training_event(event: TrainingEvent, run: Run) -> None:
    """Emit an event for automations about what happened in a training."""
    payload = {"step": event.step, "detail": event.detail, "run_dir": str(run.folder.root.absolute())}
    emit(_EVENTS[event.kind], run, payload)


def emit(event: str, run: Run, payload: dict[str, Any]) -> None:
    """Emit an event about the run."""
    resource = {"prefect.resource.id": f"kexue.run.{run.config.name}", "prefect.resource.name": run.config.name}
    emit_event(event=event, resource=resource, payload=payload | {"config_path": str(run.folder.config.absolute())})


def show_result(result: StageResult) -> None:
    """Show the table of a stage."""
    table = [{"": name, result.stage: value} for name, value in result.facts.items()]
    quietly(
        lambda: create_table_artifact(table, key=f"{result.stage}-summary", description=f"What {result.stage} made")
    )


def show_summary(root: Path) -> None:
    """Show the run's summary as Markdown, and a link to its report."""
    summary, page = summarise(root).to_markdown(), (root / "report" / "index.html").absolute()
    quietly(lambda: create_markdown_artifact(markdown=summary, key="run-summary", description="What the run made"))
    show_link("report", page.as_uri(), "The report")


def show_link(key: str, address: str, text: str) -> None:
    """Show a link."""
    quietly(lambda: create_link_artifact(address, text, key=key, description=address))
