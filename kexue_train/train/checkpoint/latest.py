"""The checkpoint to resume from: the newest whole one, of the local folder and of the storage that mirrors it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.foundation.artifacts import (
    Recipe,
    partial_dir,
    publish,
    read_manifest,
    verify_artifact,
    write_if_possible,
)
from kexue_train.foundation.errors import ArtifactError, KexueError, ResourceError, StaleArtifactError
from kexue_train.foundation.progress import Progress
from kexue_train.train.checkpoint.folder import list_checkpoints, loss_of
from kexue_train.train.checkpoint.format import TrainerState, change_of_training, read_checkpoint, step_of, sync_files
from kexue_train.train.checkpoint.storage import Storage
from kexue_train.train.distributed import on_first_rank

T = TypeVar("T")

REACH_SECONDS = 120.0
"""How long a start tries to reach the storage."""
_RETRY_SECONDS = 2.0


def latest_checkpoint(
    folder: Path, progress: Progress, *, storage: Storage | None = None, recipe: Recipe | None = None
) -> Path | None:
    """The newest checkpoint whose files all have their checksums; the file ``latest`` then names it.

    One that is only in the storage, or damaged here, is downloaded. Damaged ones are passed over and named in
    ``progress.note``; so is a storage out of reach, if there is a local one to resume from.

    Args:
        folder: The local checkpoints.
        progress: Receives the notes.
        storage: The mirror.
        recipe: What is trained here, and so what the storage must hold.

    Returns:
        None if there is none at all.

    Raises:
        ArtifactError: If there are some and all are damaged.
        StaleArtifactError: If the storage holds another training.
        ResourceError: If the storage cannot be reached and there is no whole local one.
    """
    troubles: list[KexueError] = []

    def pass_over(error: KexueError) -> None:
        troubles.append(error)
        progress.note(f"passed over: {error}")

    local, remote = {path.name for path in list_checkpoints(folder)}, set[str]()
    try:
        remote = _whole_ones(storage) if storage else remote
    except ResourceError as error:
        pass_over(error)
    for name in sorted(local | remote, key=step_of, reverse=True):
        if name in local:
            try:
                verify_artifact(folder / name)
                return _point_at(folder / name)
            except ArtifactError as error:
                pass_over(error)
        if storage and name in remote:
            try:
                return _point_at(_download(storage, folder / name, recipe))
            except StaleArtifactError:
                raise
            except (ArtifactError, ResourceError) as error:
                pass_over(error)
    if out_of_reach := next((error for error in troubles if isinstance(error, ResourceError)), None):
        raise out_of_reach
    if troubles:
        raise ArtifactError(
            f"{folder}: every checkpoint is damaged, the newest so: {troubles[0]}. Bring a whole one back from a copy, "
            "or remove them all to train from the start"
        )
    return None


def _point_at(path: Path) -> Path:
    write_if_possible(path.parent / "latest", path.name + "\n")
    return path


def _whole_ones(storage: Storage) -> set[str]:
    found = _patiently(storage.list_checkpoints, storage)
    return {name for name, is_whole in found.items() if is_whole}


def _download(storage: Storage, path: Path, recipe: Recipe | None) -> Path:
    """Bring ``path.name`` from the storage to ``path``; if it is damaged there, it no longer counts there."""
    partial = partial_dir(path)

    def fetch() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        manifest = storage.read_manifest(path.name)
        if recipe and (reason := change_of_training(recipe, manifest)):
            raise StaleArtifactError(
                f"{storage.name}: holds checkpoints of another training: {reason}. Give train.checkpoints.mirror "
                "another folder, or empty this one",
                reason,
            )
        storage.download(path.name, partial)

    try:
        _patiently(fetch, storage)
        manifest = verify_artifact(partial)
        sync_files(partial)
        publish(partial, path, manifest)
    except StaleArtifactError:
        raise
    except ArtifactError as error:
        _patiently(lambda: storage.disown(path.name), storage)
        raise ArtifactError(f"{storage.name}/{path.name}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _patiently(action: Callable[[], T], storage: Storage) -> T:
    """The result of ``action``, tried again for ``REACH_SECONDS`` while the storage cannot be reached."""
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        try:
            return action()
        except KexueError:
            raise
        except Exception as error:  # every store raises what it likes
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{storage.name}: could not be read for {REACH_SECONDS:.0f} s ({error}); check the URI in "
                    "train.checkpoints.mirror, the network and your credentials, or set "
                    "train.checkpoints.mirror=null to do without"
                ) from error
        time.sleep(_RETRY_SECONDS)


_Outline = dict[str, tuple[torch.Size, torch.dtype]]


class Restored(NamedTuple):
    """A checkpoint in memory, the same on every rank."""

    path: Path
    """On the machine of rank 0."""
    state: TrainerState
    weights: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor]
    is_scored: bool
    """Whether it tells the validation loss of its step."""


@dataclass
class _Reading:
    """What rank 0 tells the others, and what it has read."""

    find: Callable[[], Path | None]
    found: Restored | None = None

    def __call__(self) -> tuple[Path, TrainerState, bool, _Outline, _Outline] | None:
        path = self.find()
        if path is None:
            return None
        is_scored = loss_of(read_manifest(path)) is not None
        self.found = Restored(path, *read_checkpoint(path), is_scored)
        return path, self.found.state, is_scored, _outline(self.found.weights), _outline(self.found.optimizer_tensors)


def restore(find: Callable[[], Path | None], device: torch.device) -> Restored | None:
    """Read the checkpoint that ``find`` gives on rank 0 and hand it to all ranks. A collective call.

    Args:
        find: Called on rank 0 only.
        device: Of this rank; the tensors go through it but end on the CPU.

    Returns:
        None if ``find`` gives None.

    Raises:
        KexueError: What ``find`` raises, on every rank.
    """
    reading = _Reading(find)
    told = on_first_rank(reading)
    if told is None or dist.get_world_size() == 1:
        return reading.found
    path, state, is_scored, *outlines = told
    own = (reading.found.weights, reading.found.optimizer_tensors) if reading.found else (None, None)
    weights, optimizer_tensors = (
        _broadcast(outline, tensors, device) for outline, tensors in zip(outlines, own, strict=True)
    )
    return Restored(path, state, weights, optimizer_tensors, is_scored)


def _outline(tensors: dict[str, Tensor]) -> _Outline:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _broadcast(outline: _Outline, own: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors, one after another."""
    received = {}
    for name, (shape, dtype) in outline.items():
        tensor = own[name].to(device) if own else torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(tensor, src=0)
        received[name] = tensor.cpu()
    return received
