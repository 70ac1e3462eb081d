"""The local folder of checkpoints, and which of them are kept.

The writer fills the folder and the mirror reads from it, each in a thread of its own.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kexue_train.foundation.artifacts import Manifest, read_manifest, write_atomic
from kexue_train.foundation.errors import ArtifactError
from kexue_train.train.checkpoint.format import VALIDATION_LOSS, checkpoint_name, is_checkpoint_name, step_of


@dataclass(frozen=True)
class Retention:
    """The newest few, every so many steps one for ever, and the best one."""

    newest: int
    every: int | None = None
    """Steps; None: only the newest and the best stay."""

    def kept(self, losses: Mapping[int, float | None]) -> set[int]:
        """Those to keep of the steps that have a checkpoint, given their validation losses (None: not validated)."""
        steps = sorted(losses)
        for_ever = {step for step in steps if self.every and step % self.every == 0}
        best = best_step(losses)
        return {*steps[-self.newest :], *for_ever} | ({best} if best is not None else set())


def best_step(losses: Mapping[int, float | None]) -> int | None:
    """The step of lowest loss, the earlier of equal ones; None if none has a finite one.

    Since the best one is never deleted, the best of those there is the best of all there ever were.
    """
    finite = [(loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    return min(finite)[1] if finite else None


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints by name, newest first."""
    found = (path for path in folder.glob("step-*") if is_checkpoint_name(path.name) and path.is_dir())
    return sorted(found, key=lambda path: step_of(path.name), reverse=True)


class CheckpointFolder:
    """``step-XXXXXXXX`` folders, and the files ``latest`` and ``best`` that name one of them."""

    def __init__(self, root: Path, rules: Retention) -> None:
        self.root = root
        self.rules = rules
        self._lock = threading.Lock()
        self._held: Path | None = None
        self._is_held_doomed = False
        self._discard(path for path in root.glob(".step-*") if path.is_dir())  # what a kill left half-done

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint known to be whole."""
        try:
            return step_of((self.root / "latest").read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            return None

    def manifests(self) -> dict[Path, Manifest]:
        """The checkpoints whose manifest can be read, newest first."""
        found = {}
        for path in list_checkpoints(self.root):
            with suppress(ArtifactError):
                found[path] = read_manifest(path)
        return found

    def admit(self, path: Path) -> None:
        """Point ``latest`` to ``path``, ``best`` to what is now the best, and remove what the rules do not keep.

        Checkpoints after this one are of a history that was given up (damaged, or rolled back), so they go too.
        """
        manifests = {step_of(other.name): manifest for other, manifest in self.manifests().items()}
        losses = {step: loss_of(manifest) for step, manifest in manifests.items() if step <= step_of(path.name)}
        write_atomic(self.root / "latest", path.name + "\n")
        best = best_step(losses)
        if best is not None:
            write_atomic(self.root / "best", checkpoint_name(best) + "\n")
        kept = {checkpoint_name(step) for step in self.rules.kept(losses)}
        with self._lock:
            doomed = [path for path in list_checkpoints(self.root) if path.name not in kept]
            self._is_held_doomed = self._held in doomed
            hidden = [_hide(path) for path in doomed if path != self._held]
        self._discard(hidden)

    @contextmanager
    def hold(self, path: Path) -> Iterator[bool]:
        """Keep a checkpoint while it is read, even if it is to be removed; gives whether it is still there."""
        with self._lock:
            self._held, self._is_held_doomed = path, False
        try:
            yield path.is_dir()
        finally:
            with self._lock:
                hidden = [_hide(path)] if self._is_held_doomed else []
                self._held, self._is_held_doomed = None, False
            self._discard(hidden)

    @staticmethod
    def _discard(paths: Iterable[Path]) -> None:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def _hide(path: Path) -> Path:
    """Rename a checkpoint that is to be deleted: half-deleted it would look damaged."""
    return path.rename(path.with_name(f".{path.name}.old"))


def loss_of(manifest: Manifest) -> float | None:
    """The validation loss in a checkpoint's manifest."""
    loss = manifest.statistics.get(VALIDATION_LOSS)
    return float(loss) if isinstance(loss, int | float) else None
