"""Runs the tasks of the two passes, those that are not done yet, and does again what a lost machine took with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import check_memory as check_source_memory
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.streams import is_pipe
from kexue_train.executor import Executor, Fetch, LocalExecutor
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import MachineLostError, MemoryLimitError
from kexue_train.foundation.operating_system import boot_id
from kexue_train.foundation.progress import Progress
from kexue_train.shuffle.by_source import Mixture
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig
from kexue_train.shuffle.gather import GatherResult, GatherTask, gather, shard_marker_path
from kexue_train.shuffle.head import limits_of_shards
from kexue_train.shuffle.near.find import Search
from kexue_train.shuffle.near.signing import SIGNED_SUFFIXES
from kexue_train.shuffle.outputs import ShardForm
from kexue_train.shuffle.plan import MemoryBudget, ShufflePlan, memory_for_reader, plan_shuffle
from kexue_train.shuffle.replacement import DrawnRange
from kexue_train.shuffle.scatter import ScatterTask, scatter
from kexue_train.shuffle.scatter_result import ScatterResult, marker_path, spill_path
from kexue_train.shuffle.segments import Request, SpillFile, read_segments, remove_folder, write_spill_list
from kexue_train.shuffle.weights import Draw, Sampling, plan_sampling

_PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class Passes:
    """The work of one shuffle: what the tasks of both passes have in common."""

    config: ShuffleConfig
    form: ShardForm
    sources: Sequence[Source]
    plan: ShufflePlan
    budget: MemoryBudget
    seed: int
    raw: bool
    """Lines in, lines out: any bytes are a record."""
    shuf: ShufConfig
    scratch: Path
    """Where plan, markers, rejected records and (without ``spill_folder``) spill files lie."""
    spill_folder: str | None
    spills_fit_memory: bool
    """The page cache has room for all spill files, so they need neither compression nor, at once, the disk."""
    executor: Executor
    progress: Progress
    drawn: Sequence[Sequence[DrawnRange]] | None = None
    """For the ranges of each scatter task the draws with replacement; None: there are none."""
    search: Search | None = None
    """The search for near duplicates between the two passes."""

    @cached_property
    def mixture(self) -> Mixture:
        """The sources that the inputs belong to."""
        return Mixture.of(self.sources, self.plan)

    @property
    def input_bytes(self) -> int:
        """Size of the inputs."""
        return sum(source.bytes for source in self.sources)

    def scatter_all(self) -> list[ScatterResult]:
        """Run the first pass; return the results of all tasks in the order of the input."""
        with _name_memory(self.budget):
            return self._scatter_all()

    def _scatter_all(self) -> list[ScatterResult]:
        tasks = self._scatter_tasks()
        self._remove_remains(tasks)
        sizes = [sum(entry.bytes for entry, *_ in task.ranges) for task in tasks]
        while todo := self._left_to_scatter(tasks):
            done = sum(sizes) - sum(sizes[task.index] for task in todo)
            if len(todo) < len(tasks):
                self.progress.note(f"resumed: {len(tasks) - len(todo)} of {len(tasks)} input pieces were read before")
            self._update(done, "read")
            for index, result in self._run_scatter(todo):
                write_atomic(marker_path(self.scratch, todo[index].index), result.to_json())
                done += sizes[todo[index].index]
                self._update(done, "read")
        return [self._result(task) for task in tasks]

    def gather_all(
        self, scattered: Sequence[ScatterResult], out_folder: Path, shards: Sequence[int], *, is_durable: bool
    ) -> Iterator[tuple[int, GatherResult]]:
        """Run the second pass: write ``shards`` into ``out_folder`` and yield (shard, result) as they are done.

        Raises:
            MachineLostError: With ``spill_folder``, if what a machine holds is gone; call ``forget`` and scatter again.
        """
        write_spill_list(self.scratch, [self._spill_file(result) for result in scattered])
        draws = self._draws(scattered)
        limits = self._limits(scattered)
        near_folder = str(self.search.folder) if self.search else None
        tasks = [
            GatherTask(
                shard=shard,
                num_shards=self.plan.num_shards,
                buckets_per_shard=self.plan.buckets_per_shard,
                bucket_bytes=self.budget.bucket_bytes,
                form=self.form,
                drop_duplicates=self.config.dedup != "none",
                near_folder=near_folder,
                keep_dropped=self.config.keep_dropped,
                draws=tuple(by_shard[shard] for by_shard in draws),
                task_sources=self.mixture.task_sources,
                folder=str(self.scratch),
                out_folder=str(out_folder),
                max_rows=limits[shard],
                is_durable=is_durable,
                free_spills=is_durable and self.spill_folder is None,
            )
            for shard in shards
        ]
        machines = sorted({result.machine for result in scattered})
        done = self.plan.num_shards - len(tasks)
        if done:
            self.progress.note(f"resumed: {done} of {self.plan.num_shards} shards were written before")
        self._update_shards(done)
        for index, result in self.executor.map_unordered(
            gather,
            tasks,
            at_once=self.budget.workers,
            task_memory_bytes=self.budget.task_bytes,
            fetch=(lambda task: _requests(task, machines)) if self.spill_folder else None,
        ):
            done += 1
            self._update_shards(done)
            yield tasks[index].shard, result

    def left_to_gather(self) -> list[int]:
        """Return the shards that have no marker."""
        shards = range(self.plan.num_shards)
        return [shard for shard in shards if not shard_marker_path(self.scratch, shard).exists()]

    def gathered(self) -> list[GatherResult]:
        """Return the results of all shards, from their markers."""
        shards = range(self.plan.num_shards)
        return [GatherResult.from_json(_read(shard_marker_path(self.scratch, shard))) for shard in shards]

    def forget(self, lost: MachineLostError) -> None:
        """Delete the markers of scatter tasks whose spill files lay on machines that are gone."""
        number = 0
        for path in self.scratch.glob("task-*.json"):
            if ScatterResult.from_json(_read(path)).machine in lost.machines:
                path.unlink()
                number += 1
        self.progress.note(f"machine {', '.join(sorted(lost.machines))} was lost: {number} input pieces are read again")

    def remove_spills(self, scattered: Sequence[ScatterResult]) -> None:
        """Delete what the first pass wrote for the second."""
        if self.spill_folder is None:
            for path in self.scratch.glob("task-*.spill"):
                path.unlink(missing_ok=True)
            return
        machines = {result.machine for result in scattered} & set(self.executor.machines())
        folders = {machine: str(Path(self.spill_folder, machine)) for machine in sorted(machines)}
        fetches = [[Fetch(machine, remove_folder, folder)] for machine, folder in folders.items()]
        for _ in self.executor.map_unordered(_ignore, fetches, fetch=lambda item: item):
            pass

    def _scatter_tasks(self) -> list[ScatterTask]:
        config = self.config
        samplings, shares = self._sampling
        options = read_options(config, self.shuf, self.budget, raw=self.raw)
        near = config.near if self.search and not self.search.is_done else None
        return [
            ScatterTask(
                index=index,
                ranges=tuple((entry, self.sources[entry.file_index], samplings[entry.file_index]) for entry in group),
                options=options,
                filters=config.filters,
                seed=self.seed,
                num_shards=self.plan.num_shards,
                num_buckets=self.plan.num_buckets,
                has_tickets=bool(shares),
                drop_duplicates=config.dedup != "none",
                near=near,
                num_band_buckets=self.search.num_buckets if self.search else 0,
                fail_on_bad_record=config.on_bad_record == "fail",
                keep_dropped=config.keep_dropped,
                header=self.shuf.header,
                head_count=None if self.drawn else self.shuf.head_count,
                drawn=tuple(self.drawn[index]) if self.drawn else None,
                buffer_bytes=self.budget.buffer_bytes,
                fits_memory=self.spills_fit_memory,
                folder=str(self.scratch),
                spill_folder=self.spill_folder,
            )
            for index, group in enumerate(self.plan.tasks)
        ]

    @property
    def _sampling(self) -> tuple[list[Sampling], list[float]]:
        # With sources the share that stays is exact for each of them.
        groups = [source.named.name if source.named else "" for source in self.sources]
        return plan_sampling([source.weight for source in self.sources], groups)

    def _run_scatter(self, todo: Sequence[ScatterTask]) -> Iterator[tuple[int, ScatterResult]]:
        here = [i for i, task in enumerate(todo) if any(is_pipe(source.path) for _, source, _ in task.ranges)]
        there = [i for i in range(len(todo)) if i not in set(here)]
        for executor, chosen in ((LocalExecutor(1), here), (self.executor, there)):
            results = executor.map_unordered(
                scatter,
                [todo[i] for i in chosen],
                at_once=self.budget.workers,
                task_memory_bytes=self.budget.task_bytes,
            )
            yield from ((chosen[index], result) for index, result in results)

    def _draws(self, scattered: Sequence[ScatterResult]) -> list[list[Draw]]:
        """Return for every ticket the draw of each shard."""
        draws = []
        for ticket, share in enumerate(self._sampling[1], start=1):
            rows = np.zeros(self.plan.num_shards, np.int64)
            for result in scattered:
                rows += np.array(result.tickets.get(ticket, 0), np.int64)
            firsts = (np.cumsum(rows) - rows).tolist()
            draws.append([Draw(self.seed, ticket, first, int(rows.sum()), share) for first in firsts])
        return draws

    def _limits(self, scattered: Sequence[ScatterResult]) -> Sequence[int | None]:
        """Return for every shard how many rows it may have."""
        if self.shuf.head_count is None or self.drawn:
            return [None] * self.plan.num_shards
        rows = np.zeros(self.plan.num_shards, np.int64)
        for counts in (entry for result in scattered for entry in result.files.values()):
            rows += np.array(counts.shard_rows, np.int64)
        return limits_of_shards(self.shuf.head_count, rows)

    def _result(self, task: ScatterTask) -> ScatterResult:
        return ScatterResult.from_json(_read(marker_path(self.scratch, task.index)))

    def _left_to_scatter(self, tasks: Sequence[ScatterTask]) -> list[ScatterTask]:
        """Return the tasks that are not done, or whose spill file is missing as far as this process can see."""
        alive = self.executor.machines() if self.spill_folder else []

        def is_done(task: ScatterTask) -> bool:
            if not marker_path(self.scratch, task.index).exists():
                return False
            result = self._result(task)
            is_there = result.machine in alive if self.spill_folder else spill_path(task.folder, None, result).exists()
            return is_there and (task.near is None or self._is_signed(result, read=False))

        return [task for task in tasks if not is_done(task)]

    def _remove_remains(self, tasks: Sequence[ScatterTask]) -> None:
        """Delete the spill files of killed attempts, and the markers of those that did not survive a new start."""
        named = set()
        for task in tasks:
            marker = marker_path(self.scratch, task.index)
            if not marker.exists():
                continue
            result = self._result(task)
            is_lost = self.spill_folder is None and not self._spill_file(result).is_whole()
            if is_lost or (task.near and not self._is_signed(result, read=result.boot != boot_id())):
                marker.unlink()
            else:
                named.add(result.spill)
        for suffix in ("", *SIGNED_SUFFIXES):
            for path in self.scratch.glob(f"task-*.spill{suffix}"):
                if path.name.removesuffix(suffix) not in named:
                    path.unlink(missing_ok=True)
        for path in (*self.scratch.glob("part-*.tmp"), *self.scratch.glob("near/*.tmp")):
            path.unlink(missing_ok=True)

    def _is_signed(self, result: ScatterResult, *, read: bool) -> bool:
        return result.signed is not None and result.signed.are_whole(self.scratch, result.spill, read=read)

    def _spill_file(self, result: ScatterResult) -> SpillFile:
        path = spill_path(str(self.scratch), self.spill_folder, result)
        return SpillFile(result.machine, result.boot, str(path), result.index)

    def _update(self, done: float, phase: str) -> None:
        total = 2 * self.input_bytes
        self.progress.update(done, total or None, "bytes", phase=phase)

    def update_search(self, share: float) -> None:
        """Show how much of the search for near duplicates is done."""
        self._update(self.input_bytes, f"compare, {share:.0%}")

    def _update_shards(self, done: int) -> None:
        self._update(self.input_bytes * (1 + done / self.plan.num_shards), "write")


def read_options(config: ShuffleConfig, shuf: ShufConfig, budget: MemoryBudget, *, raw: bool) -> ReadOptions:
    """Return how the inputs are read."""
    return ReadOptions(
        text_keys=config.text_keys,
        keep=config.keep,
        rejects_unread=config.keep_all,
        document=config.document,
        raw=raw,
        line_end=shuf.line_end,
        block_bytes=budget.block_bytes,
        memory_bytes=budget.reader_bytes,
    )


def check_memory(sources: Sequence[Source], options: ReadOptions, budget: MemoryBudget) -> None:
    """Refuse, before anything is read, an input that cannot be read in the memory there is.

    Raises:
        MemoryLimitError: If there is one; it says how much memory would do.
    """
    with _name_memory(budget):
        for source in sources:
            check_source_memory(source, options)


@contextmanager
def _name_memory(budget: MemoryBudget) -> Iterator[None]:
    """Add to the refusal of an input how much memory would do."""
    try:
        yield
    except MemoryLimitError as error:
        memory = -(-memory_for_reader(error.need_bytes, budget.workers) // 10**6)
        raise MemoryLimitError(f"{error}, or give it more, with --memory {memory}MB", error.need_bytes) from None


def load_plan(scratch: Path, sources: Sequence[Source], num_shards: int, budget: MemoryBudget) -> ShufflePlan:
    """Return the plan the work began with, so that a rerun with other memory can resume; else a new one."""
    path = scratch / _PLAN_NAME
    if path.exists():
        return ShufflePlan.from_json(json.loads(_read(path)))
    plan = plan_shuffle(sources, num_shards, budget.bucket_bytes)
    write_atomic(path, json.dumps(plan.to_json()))
    return plan


def _requests(task: GatherTask, machines: Sequence[str]) -> list[Fetch]:
    first = task.shard * task.buckets_per_shard
    return [
        Fetch(machine, read_segments, Request(task.folder, machine, first, first + task.buckets_per_shard))
        for machine in machines
    ]


def _ignore(item: object, fetched: object) -> None:
    """Do nothing; the task is there for the files that it fetches."""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
