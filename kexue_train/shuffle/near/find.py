"""Finds the near duplicates between the two passes: compares the documents of each band key, then groups what is alike.

Each step leaves a marker, so a killed run goes on where it was; the last, ``clusters.json``, holds the whole result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.executor import Executor
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ResourceError
from kexue_train.foundation.runtime import format_size
from kexue_train.shuffle.keys import distinct_hashes
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.documents import DocumentReader
from kexue_train.shuffle.near.grouping import BYTES_PER_DOCUMENT, Edges, connect, spanning_edges
from kexue_train.shuffle.near.leaving_out import FILES_NAME
from kexue_train.shuffle.near.match import MatchResult, MatchTask, match, read_edges
from kexue_train.shuffle.near.removal import VERDICT, write_verdicts
from kexue_train.shuffle.near.signing import SIGNED_SUFFIXES, SignedFiles, signed_paths
from kexue_train.shuffle.plan import MemoryBudget, ShufflePlan
from kexue_train.shuffle.segments import SpillFile, write_spill_list

_CLUSTERS_NAME = "clusters.json"
_MIN_TASKS = 16
"""The bands go into so many buckets and tasks at least, so that all cores compare."""
NUM_SHOWN, MEMBERS_SHOWN = 10, 3
"""Of the largest clusters so many are shown, with so many of their documents."""


@dataclass(frozen=True)
class Search:
    """The search for near duplicates of one shuffle."""

    near: NearConfig
    plan: ShufflePlan
    budget: MemoryBudget
    executor: Executor
    scratch: Path
    """Where the first pass left its files."""
    files: Sequence[str]
    """The names of the inputs, without credentials."""
    max_copies: int
    """How often a document is taken at most."""
    seed: int

    @property
    def folder(self) -> Path:
        """Where the steps leave their results."""
        return self.scratch / "near"

    @property
    def num_buckets(self) -> int:
        """Buckets of the bands."""
        return max(self.plan.num_buckets, _MIN_TASKS)

    @property
    def is_done(self) -> bool:
        """Whether the search is over; then the first pass need not sign documents any more."""
        return (self.folder / _CLUSTERS_NAME).exists()

    def clusters(self) -> dict[str, Any] | None:
        """Return what was found; None as long as the search is not over."""
        if not self.is_done:
            return None
        found: dict[str, Any] = json.loads((self.folder / _CLUSTERS_NAME).read_text(encoding="utf-8"))
        return found

    def run(
        self, signed: Sequence[tuple[str, str, str, SignedFiles]], update: Callable[[float], None]
    ) -> dict[str, Any]:
        """Do what is not done yet, and return what was found.

        Args:
            signed: For each scatter task machine, boot, the name of its spill file, and what lies beside it.
            update: Receives the share that is done.

        Raises:
            ResourceError: If too many documents have near duplicates to be grouped in the memory there is.
        """
        if found := self.clusters():
            return found
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.folder / FILES_NAME, json.dumps(list(self.files)))
        paths = [signed_paths(self.scratch, spill) for _, _, spill, _ in signed]
        write_spill_list(
            self.folder,
            [
                SpillFile(machine, boot, str(bands), files.index)
                for (machine, boot, _, files), (bands, _, _) in zip(signed, paths, strict=True)
            ],
        )
        tasks = self._tasks()
        results = self._match(tasks, update)
        reader = DocumentReader([(table, samples) for _, table, samples in paths])
        found = self._group(self._join(tasks), reader)
        found |= {
            "compared": sum(result.candidates for result in results),
            "below_threshold": sum(result.too_low for result in results),
        }
        write_atomic(self.folder / _CLUSTERS_NAME, json.dumps(found))
        self.remove_files()
        return found

    def remove_files(self) -> None:
        """Delete what the first pass left for the search."""
        for suffix in SIGNED_SUFFIXES:
            for path in self.scratch.glob(f"task-*.spill{suffix}"):
                path.unlink(missing_ok=True)
        for path in self.folder.glob("match-*.edges"):
            path.unlink(missing_ok=True)

    def _tasks(self) -> list[MatchTask]:
        num_tasks = min(max(self.plan.num_shards, _MIN_TASKS), self.num_buckets)
        edges = [self.num_buckets * i // num_tasks for i in range(num_tasks + 1)]
        return [
            MatchTask(
                index=index,
                first=edges[index],
                stop=edges[index + 1],
                num_buckets=self.num_buckets,
                threshold=self.near.threshold,
                limit_bytes=self.budget.bucket_bytes // 2,
                folder=str(self.folder),
            )
            for index in range(num_tasks)
        ]

    def _match(self, tasks: Sequence[MatchTask], update: Callable[[float], None]) -> list[MatchResult]:
        todo = [task for task in tasks if MatchResult.read(self.folder, task.index) is None]
        done = len(tasks) - len(todo)
        update(done / len(tasks))
        for _ in self.executor.map_unordered(
            match, todo, at_once=self.budget.workers, task_memory_bytes=self.budget.task_bytes
        ):
            done += 1
            update(done / len(tasks))
        return [result for task in tasks if (result := MatchResult.read(self.folder, task.index))]

    def _join(self, tasks: Sequence[MatchTask]) -> Edges:
        """Return the edges that connect what those of all tasks connect, as long as they fit into the memory."""
        joined = np.zeros((0, 2), np.uint64)
        for task in tasks:
            found = read_edges(self.folder, task.index)
            self._check_memory(max(len(joined), len(found)))
            joined = spanning_edges(np.concatenate([joined, found]))
        self._check_memory(len(joined))
        return joined

    def _check_memory(self, num_documents: int) -> None:
        limit = self.budget.workers * (self.budget.bucket_bytes + self.budget.buffer_bytes)  # no task runs meanwhile
        need = num_documents * BYTES_PER_DOCUMENT
        if need > limit:
            raise ResourceError(
                f"{num_documents:,} documents or more are near-duplicates of others, and grouping them takes "
                f"{format_size(need)} of memory where --memory leaves {format_size(limit)} for it; give it "
                "more (shuffle.memory), then run the same command again: finished work is kept"
            )

    def _group(self, edges: Edges, reader: DocumentReader) -> dict[str, Any]:
        """Write the verdicts on all documents that are in a cluster, and return the clusters in numbers."""
        numbers, ends = np.unique(edges, return_inverse=True)
        entries = reader.entries(numbers)
        hashes = np.stack([entries["high"], entries["low"]]).astype(np.uint64)
        # A text may stand for itself under several numbers, since long runs of a key are compared in pieces.
        firsts, same = distinct_hashes(hashes)
        entries = entries[firsts]
        roots = connect(same[ends.reshape(-1, 2)], len(firsts))
        sizes = np.bincount(roots, minlength=len(roots))
        shown = _choose_shown(roots, sizes)
        verdicts = np.zeros(len(entries), VERDICT)
        for name in ("high", "low", "file", "position"):
            verdicts[name] = entries[name]
        verdicts["kept_file"], verdicts["kept_position"] = entries["file"][roots], entries["position"][roots]
        verdicts["shown"] = shown
        verdicts["is_removed"] = roots != np.arange(len(roots))
        told = verdicts[(verdicts["is_removed"] > 0) | (shown > 0)]
        write_verdicts(self.folder, told, self.plan.num_shards, self.max_copies, self.seed)
        counts = Counter(sizes[sizes > 1].tolist())
        return {
            "clusters": counts.total(),
            "texts": sum(size * count for size, count in counts.items()),
            "sizes": {str(size): counts[size] for size in sorted(counts)},
            "largest": sorted(sizes[sizes > 1].tolist(), reverse=True)[:NUM_SHOWN],
        }


def _choose_shown(roots: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 1 + the rank of its cluster for the documents to show, 0 for others: shape (n,)."""
    shown = np.zeros(len(roots), np.int64)
    order = np.lexsort((np.arange(len(sizes)), -sizes))[:NUM_SHOWN]
    for rank, root in enumerate(order[sizes[order] > 1].tolist()):
        shown[np.flatnonzero(roots == root)[:MEMBERS_SHOWN]] = rank + 1
    return shown
