"""One Prefect task per stage, named like the stage: it adds retries, tags and artifacts to the stage's ``make``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows.artifacts import ArtifactProgress, TrainingArtifacts, emit, show_result
from flows.context import FlowContext
from kexue_train.executor import connect_ray
from kexue_train.foundation.background import run_in_thread
from kexue_train.foundation.credentials import redact
from kexue_train.foundation.errors import KexueError
from kexue_train.foundation.json_logs import enter_stage
from kexue_train.foundation.runtime import available_cpus
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.run import Run, begin_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import EVALUATE, EXPORT, REPORT, STAGES, SUPERVISE, TRAIN
from kexue_train.train.job import TrainDir

TRAINING_TAG = "kexue-train"
"""Only one task with this tag runs at a time, once ``flows.set_up`` has created the limit."""
# For stages whose work does not grow with the corpus. Training has its own watchdog.
_TRAININGS = (TRAIN, SUPERVISE)
_TIMEOUTS_SECONDS = {EXPORT.name: 3600, REPORT.name: 3600}


def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help; it cannot for a mistake that the user has to correct."""
    return not _is_mistake(state.result(raise_on_failure=False))


def _is_mistake(error: object) -> bool:
    return isinstance(error, KexueError) and error.exit_code == KexueError.exit_code


def _without_credentials(error: Exception) -> Exception:
    """Return what the server may record of ``error``: of another than ours only text without credentials."""
    if isinstance(error, KexueError) or redact(str(error)) == str(error):
        return error
    return RuntimeError(f"{type(error).__name__}: {redact(str(error))}")


def stage_task(stage: Stage[RunConfig]) -> Task[..., Any]:
    """Return the Prefect task of ``stage``; the message of its state says what it made, its result is the folder."""

    @task(
        name=stage.name,
        task_run_name=stage.name,
        retries=1,
        retry_delay_seconds=5,
        retry_condition_fn=is_worth_retrying,
        timeout_seconds=_TIMEOUTS_SECONDS.get(stage.name),
        cache_policy=NO_CACHE,
        persist_result=False,
        tags=[TRAINING_TAG]
        if stage in _TRAININGS
        else None,  # Prefect asks for a slot before every task that has a tag
    )
    def make(context: FlowContext, *folders: Path | None, out: Path | None = None) -> State[Path]:
        board, run = context.board, context.run
        inputs = tuple(folder for folder in folders if folder is not None)  # None: of a stage that the run has not
        board.start(stage.name)
        enter_stage(stage.name)
        try:
            progress: Any = ArtifactProgress(stage.name, board)
            if stage in _TRAININGS:
                progress = TrainingArtifacts(run, stage, board)
            work = begin_stage(stage, run, inputs, out)
            if stage in _TRAININGS:
                _train_in_thread(run, stage, progress, lambda: work.make(progress))
            else:
                work.make(progress)
            result = work.finish()
            progress.complete()
        except Exception as error:  # noqa: BLE001  # raised again
            if not _is_mistake(error):  # show the error, since a retry may hide it
                board.note(f"failed: {type(error).__name__}: {error}")
            raise _without_credentials(error) from None
        if stage is EVALUATE:
            emit("kexue.evaluation.finished", run, {"model": str(inputs[0].absolute()), "summary": result.summary})
        show_result(result)
        board.finish(stage.name, result.summary, result.seconds, made=result.made)
        context.summaries[stage.name] = result.summary
        return Completed(message=result.summary, data=result.folder)

    return make


def _train_in_thread(
    run: Run, stage: Stage[RunConfig], artifacts: TrainingArtifacts, make: Callable[[], object]
) -> None:
    """Train in a thread; a signal that raises in the calling thread makes the training save a checkpoint and end."""
    train, stop = run.config.train, TrainDir(run.folder_of(stage)).stop

    def request_stop() -> None:
        if stop.parent.is_dir():
            stop.touch()

    if train.workers.launcher == "ray":  # a local Ray ends with the thread that started it
        connect_ray(run.config.execution.ray_address, max(available_cpus(), train.num_workers))
    try:
        run_in_thread(make, on_poll=artifacts.send, request_stop=request_stop, stop_seconds=train.faults.stop_timeout)
    except KexueError:
        artifacts.send_failure()
        raise


_TASKS = {stage.name: stage_task(stage) for stage in STAGES}


def __getattr__(name: str) -> Task[..., Any]:
    """Let flows import the task of every stage by its name: ``from flows.tasks import shuffle``."""
    if name not in _TASKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _TASKS[name]
