"""One Prefect task per stage: retries, tags and artifacts around the library's stage function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows.artifacts import ArtifactProgress, TrainingArtifacts, emit, show_result
from flows.workshop import Workshop
from kexue_train.foundation.errors import KexueError
from kexue_train.pipeline.run import run_stage, train_beside
from kexue_train.pipeline.stage_result import StageResult

TRAINING_TAG = "kexue-train"
"""One task with it at a time, once ``flows.set_up`` has made the limit: one training per cluster."""
# Where the work does not grow with the corpus; a training that hangs is its own watchdog's affair.
_TIMEOUTS_SECONDS = {"export": 3600, "report": 3600}


def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass by itself; not what the user has to correct."""
    return not _is_mistake(state.result(raise_on_failure=False))


def _is_mistake(error: object) -> bool:
    return isinstance(error, KexueError) and error.exit_code == KexueError.exit_code


def stage_task(name: str) -> Task[[Workshop], Any]:
    """The Prefect task of the stage ``name``; its state says what it made, its result is the folder's path."""

    @task(
        name=name,
        task_run_name=name,
        retries=1,
        retry_delay_seconds=5,
        retry_condition_fn=is_worth_retrying,
        timeout_seconds=_TIMEOUTS_SECONDS.get(name),
        cache_policy=NO_CACHE,
        persist_result=False,
        tags=["kexue_train", name, *([TRAINING_TAG] if name == "train" else [])],
    )
    def run(workshop: Workshop) -> State[str]:
        board = workshop.board
        board.start(name)
        try:
            result = _STAGES.get(name, _make)(name, workshop)
        except Exception as error:
            if not _is_mistake(error):  # it may be tried again, which should not go unseen
                board.note(f"failed: {type(error).__name__}: {error}")
            raise
        show_result(result)
        board.finish(name, result.summary, result.seconds, made=result.made)
        workshop.summaries[name] = result.summary
        return Completed(message=result.summary, data=str(result.folder))

    return run


def _make(name: str, workshop: Workshop) -> StageResult:
    progress = ArtifactProgress(name, workshop.board)
    result = run_stage(name, workshop.run, progress)
    progress.complete()
    return result


def _train(_: str, workshop: Workshop) -> StageResult:
    artifacts = TrainingArtifacts(workshop.run, workshop.board)
    try:
        result = train_beside(workshop.run, artifacts, meanwhile=artifacts.send)
    except KexueError:
        artifacts.send_failure()
        raise
    artifacts.complete()
    return result


def _evaluate(name: str, workshop: Workshop) -> StageResult:
    result = _make(name, workshop)
    payload = {"model": str(workshop.run.model.absolute()), "summary": result.summary}
    emit("kexue.evaluation.finished", workshop.run, payload)
    return result


_STAGES: dict[str, Callable[[str, Workshop], StageResult]] = {"train": _train, "evaluate": _evaluate}

corpus = stage_task("corpus")
shuffle = stage_task("shuffle")
tokenizer = stage_task("tokenizer")
samples = stage_task("samples")
train = stage_task("train")
export = stage_task("export")
evaluate = stage_task("evaluate")
report = stage_task("report")
