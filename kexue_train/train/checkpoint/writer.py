"""Saving in the background: the training thread only copies to host memory; a thread hashes and writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from kexue_train.foundation.artifacts import Recipe
from kexue_train.foundation.errors import ResourceError, TrainingError
from kexue_train.metrics.fields import Kind
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.train.checkpoint.events import Event, Events
from kexue_train.train.checkpoint.folder import CheckpointFolder
from kexue_train.train.checkpoint.format import TrainerState, save_checkpoint
from kexue_train.train.checkpoint.mirror import Mirror

SECONDS_BETWEEN_LAST_TRIES = 3.0
"""Between two tries to write the last checkpoint, in which a disk may be given room."""
MAX_FAILURES = 3
"""Checkpoints in a row that could not be written before training stops."""


class HostCopy:
    """Buffers for one set of tensors, taken at the first copy and used again, page-locked for tensors on CUDA."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies on the CPU, good until the next ``take``; returns when they are whole."""
        copies = {name: self._buffer(name, tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()}
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[name] = buffer
        return buffer


@dataclass(frozen=True)
class _Snapshot:
    model: RoFormerV2ForPreTraining
    weights: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor]
    state: TrainerState
    validation_loss: float | None


class CheckpointWriter:
    """Saves checkpoints, at most one at a time. All methods are for the training thread of rank 0.

    As a context it also starts and ends the mirror; whatever ends the training, the checkpoint in hand is written.

    Args:
        folder: Where they go.
        recipe: What the training makes.
        tokenizer: Folder whose tokenizer files go into every checkpoint.
        events: Receives "checkpoint_saved" and "checkpoint_failed".
        mirror: Told of each whole checkpoint.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        recipe: Recipe,
        tokenizer: Path,
        events: Events,
        mirror: Mirror | None = None,
    ) -> None:
        self._folder, self._recipe, self._tokenizer = folder, recipe, tokenizer
        self._mirror, self._events = mirror, events
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._weights, self._optimizer_tensors = HostCopy(), HostCopy()
        self._last: _Snapshot | None = None
        self._failures = 0
        self._reason = ""

    def save(
        self,
        model: RoFormerV2ForPreTraining,
        weights: Mapping[str, Tensor],
        optimizer_tensors: Mapping[str, Tensor],
        state: TrainerState,
        validation_loss: float | None = None,
    ) -> None:
        """Copy the tensors, after the checkpoint before is written, and write them in the background.

        See ``save_checkpoint`` for the arguments; the tensors may be on any device.

        Raises:
            TrainingError: If the last ``MAX_FAILURES`` could not be written.
        """
        self._wait()
        self._raise_if_hopeless()
        copies = self._weights.take(weights), self._optimizer_tensors.take(optimizer_tensors)
        self._last = _Snapshot(model, *copies, state, validation_loss)
        self._writing = self._thread.submit(self._write, self._last)

    def take_events(self) -> list[Event]:
        """What happened in the background since the last call.

        Raises:
            TrainingError: If the last ``MAX_FAILURES`` could not be written.
        """
        if self._writing is not None and self._writing.done():
            self._wait()
        self._raise_if_hopeless()
        return self._events.take()

    def finish(self) -> None:
        """Return when the last checkpoint is on disk. There is no next one, so a failure is soon tried again.

        Raises:
            TrainingError: If it could not be written.
        """
        self._wait()
        while self._failures and self._last:
            self._raise_if_hopeless()
            time.sleep(SECONDS_BETWEEN_LAST_TRIES)
            self._write(self._last)
        self._last = None  # and with it the model

    def __enter__(self) -> Self:
        if self._mirror:
            self._mirror.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if self._mirror:
            self._mirror.close(is_patient=error is None)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, snapshot: _Snapshot) -> None:
        started, step = time.perf_counter(), snapshot.state.step
        try:
            path = save_checkpoint(
                self._folder.root,
                snapshot.model,
                snapshot.weights,
                snapshot.optimizer_tensors,
                snapshot.state,
                recipe=self._recipe,
                tokenizer=self._tokenizer,
                validation_loss=snapshot.validation_loss,
            )
            self._folder.admit(path)
        except (OSError, ResourceError) as error:
            self._failures += 1
            self._reason = str(error)
            self._events.add(Kind.CHECKPOINT_FAILED, step, failures_in_a_row=self._failures, reason=self._reason)
            return
        self._failures = 0
        self._events.add(Kind.CHECKPOINT_SAVED, step, write_seconds=round(time.perf_counter() - started, 3))
        if self._mirror:
            self._mirror.wake()

    def _raise_if_hopeless(self) -> None:
        if self._failures >= MAX_FAILURES:
            raise TrainingError(
                f"{self._folder.root}: {self._failures} checkpoints in a row could not be written ({self._reason}), so "
                "training stops before more is at stake; make room or repair the disk, then run the same command "
                "again: it resumes from the last whole checkpoint"
            )
