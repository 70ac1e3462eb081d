"""A copy of the folder of checkpoints in object storage, kept up to date by a thread that no outage stops."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from kexue_train.foundation.artifacts import Manifest, Recipe
from kexue_train.foundation.errors import ArtifactError, ResourceError
from kexue_train.metrics.fields import Kind
from kexue_train.train.checkpoint.events import Events
from kexue_train.train.checkpoint.folder import CheckpointFolder, best_step, loss_of
from kexue_train.train.checkpoint.format import change_of_training, checkpoint_name, step_of
from kexue_train.train.checkpoint.storage import Storage

logger = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds between two attempts; doubled after each failure


class Mirror:
    """Brings the storage to the state of the folder, again after each whole checkpoint, in a thread of its own.

    Nothing is queued: what the folder holds and the storage lacks is uploaded, the newest first, so an outage of any
    length needs no bookkeeping.

    Args:
        folder: The local checkpoints.
        storage: Where the copy goes.
        recipe: What the training makes; a storage that holds another training is left alone.
        events: Receives "mirrored", "mirror_failed" (once per outage) and "mirror_back".
        patience: Seconds that ``close`` waits while the storage is out of reach.
    """

    def __init__(
        self, folder: CheckpointFolder, storage: Storage, recipe: Recipe, events: Events, *, patience: float = 60.0
    ) -> None:
        self._folder, self._storage, self._recipe = folder, storage, recipe
        self._events, self._patience = events, patience
        self._known: dict[str, Manifest] = {}
        self._failed_at: float | None = None
        self._ends_at = float("inf")
        self._woken, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def wake(self) -> None:
        """Say that there is something new."""
        self._woken.set()

    def start(self) -> None:
        """Start the thread; it waits for the first call of ``wake``, when what was saved before has been checked."""
        self._thread.start()

    def close(self, *, is_patient: bool) -> None:
        """Return after the last upload; out of reach, the storage is given some time, or only one more attempt."""
        self._ends_at = time.monotonic() + (self._patience if is_patient else 0.0)
        self._closing.set()
        self._woken.set()
        self._thread.join()
        if self._failed_at is not None:
            logger.warning("%s lacks the last checkpoints, which are in %s", self._storage.name, self._folder.root)

    def _run(self) -> None:
        delay = _FIRST_DELAY
        while True:
            self._woken.wait()
            self._woken.clear()
            is_last = self._closing.is_set()
            if self._attempt():
                delay = _FIRST_DELAY
                if is_last:
                    return
                continue
            left = self._ends_at - time.monotonic()
            if is_last and left <= 0:
                return
            if is_last:
                time.sleep(min(delay, left))
            else:
                self._closing.wait(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
            self._woken.set()

    def _attempt(self) -> bool:
        step = self._folder.latest_step() or 0
        try:
            self._synchronise()
        except Exception as error:  # noqa: BLE001  # every store raises what it likes
            if self._failed_at is None:
                self._failed_at = time.monotonic()
                self._events.add(Kind.MIRROR_FAILED, step, storage=self._storage.name, reason=str(error) or repr(error))
            return False
        if self._failed_at is not None:
            seconds, self._failed_at = time.monotonic() - self._failed_at, None
            self._events.add(Kind.MIRROR_BACK, step, storage=self._storage.name, seconds=round(seconds, 1))
        return True

    def _synchronise(self) -> None:
        found = self._storage.list_checkpoints()
        self._learn({name for name, is_whole in found.items() if is_whole})
        newest = self._folder.latest_step()
        if newest is None:
            return
        local = {path: manifest for path, manifest in self._folder.manifests().items() if step_of(path.name) <= newest}
        losses = {step_of(path.name): loss_of(manifest) for path, manifest in local.items()}
        losses |= {step_of(name): loss_of(manifest) for name, manifest in self._known.items()}
        # What the storage has after the newest local one is left alone: it may be all that there is.
        kept = self._folder.rules.kept({step: loss for step, loss in losses.items() if step <= newest})
        for path, manifest in local.items():
            if step_of(path.name) in kept and self._known.get(path.name) != manifest:
                self._upload(path, manifest)
        self._point(newest, best_step({step: losses[step] for step in kept}))
        self._remove({name for name in found if step_of(name) <= newest and step_of(name) not in kept})

    def _learn(self, whole: set[str]) -> None:
        """Know the manifests of the whole checkpoints in the storage."""
        self._known = {name: manifest for name, manifest in self._known.items() if name in whole}
        for name in whole - self._known.keys():
            try:
                manifest = self._storage.read_manifest(name)
            except ArtifactError:
                continue  # as good as torn
            if reason := change_of_training(self._recipe, manifest):
                raise ResourceError(f"it holds checkpoints of another training: {reason}")
            self._known[name] = manifest

    def _upload(self, path: Path, manifest: Manifest) -> None:
        started = time.perf_counter()
        with self._folder.hold(path) as is_there:
            if not is_there:
                return
            if self._known.pop(path.name, None):
                self._storage.disown(path.name)
            self._storage.upload(path)
        self._known[path.name] = manifest
        seconds = round(time.perf_counter() - started, 3)
        self._events.add(
            Kind.MIRRORED, step_of(path.name), storage=self._storage.name, seconds=seconds, bytes=manifest.bytes
        )

    def _point(self, latest: int, best: int | None) -> None:
        for file, step in (("latest", latest), ("best", best)):
            if step is not None and checkpoint_name(step) in self._known:
                self._storage.write_text(file, checkpoint_name(step) + "\n")

    def _remove(self, names: set[str]) -> None:
        for name in sorted(names):
            if self._known.pop(name, None):
                self._storage.disown(name)  # first, so that a half-deleted one does not count
            self._storage.delete(name)
