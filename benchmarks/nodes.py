"""One shuffle on many Ray nodes that this machine simulates: memory of the driver, time per task, a node that is lost.

Each node has an address and a spill disk (a folder) of its own and one CPU. The corpus is cut into very many tasks. The
shards must be, byte for byte, those of one process; a task leaves a marker, and these are counted. In the last run one
node is removed in the middle of the second pass, with its disk. Two processors do the work of all nodes, so times tell
what a task costs and not how fast a cluster would be.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.make_corpus import make_corpus
from benchmarks.shuffle_cost import counting, ranges_of
from kexue_train.executor import Executor, LocalExecutor, RayExecutor
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.progress import Silent
from kexue_train.foundation.runtime import format_size, parse_size
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus

_TRIES = 4
_HEALTH = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 2000, "health_check_failure_threshold": 10}


@dataclass(frozen=True, slots=True)
class Run:
    """One shuffle."""

    title: str
    tasks: int
    seconds: float
    driver_bytes: int
    """Most memory of the process that hands out the tasks."""
    digest: str
    """Of all shards."""
    notes: tuple[str, ...] = ()


class LoseNode(Silent):
    """Removes a node and its disk when half of the shards are written."""

    def __init__(self, cluster: Any, node: Any, disk: Path) -> None:
        self._cluster, self._node, self._disk = cluster, node, disk
        self.notes: list[str] = []
        self._is_lost = False

    def update(self, done: float, total: float, unit: str, **facts: Any) -> None:  # noqa: ARG002
        """See ``Progress``."""
        if facts.get("phase") != "write" or done <= total / 2 or self._is_lost:
            return
        self._is_lost = True
        raylet = psutil.Process(self._node.all_processes["raylet"][0].process.pid)
        family = raylet.children(recursive=True)
        self._cluster.remove_node(self._node, allow_graceful=False)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family)
        for folder in self._disk.glob(f"*/{self._node.node_ip_address}"):
            shutil.rmtree(folder)

    def note(self, message: str) -> None:
        """See ``Progress``."""
        self.notes.append(message)


def main(
    nodes: Annotated[int, typer.Option(min=2, help="Of one CPU each.")] = 16,
    tasks: Annotated[int, typer.Option(min=8, help="About; one in 50 writes a shard, the others read.")] = 5000,
    size: Annotated[str, typer.Option(help="Of the corpus.")] = "200MB",
    workdir: Annotated[Path, typer.Option(help="Where everything is made.")] = Path("runs/benchmark"),
) -> None:
    """Shuffle in one process, on the nodes, and on the nodes of which one is lost."""
    workdir.mkdir(parents=True, exist_ok=True)
    shards, num_bytes = max(4, tasks // 50), parse_size(size)
    corpus = make_corpus(workdir, "jsonl", num_bytes).path

    def shuffled(title: str, executor: Executor, progress: Silent, **settings: Any) -> Run:
        out = workdir / "nodes-out"
        shutil.rmtree(out, ignore_errors=True)
        config = ShuffleConfig(shards=shards, memory="1GB", **settings)
        with ranges_of(num_bytes // (tasks - shards)), counting() as seen, _peak_memory() as peak:
            began = time.perf_counter()
            shuffle_corpus(config, [str(corpus)], out, seed=0, executor=executor, progress=progress)
            took = time.perf_counter() - began
        return Run(
            title,
            seen["markers"],
            took,
            peak[0],
            read_manifest(out).content_digest,
            tuple(getattr(progress, "notes", ())),
        )

    runs = [shuffled("one process", LocalExecutor(1), Silent())]
    with _cluster(nodes) as cluster:
        spill = workdir / "nodes-spill"
        runs.append(shuffled(f"{nodes} nodes", RayExecutor(cluster.address), Silent(), spill=str(spill)))
        lost = LoseNode(cluster, sorted(cluster.worker_nodes, key=lambda node: node.node_ip_address)[0], spill)
        runs.append(shuffled(f"{nodes} nodes, one lost", RayExecutor(cluster.address), lost, spill=str(spill)))
        left = [path for path in spill.rglob("*") if path.is_file()]
    table = Table(
        "", "tasks", "s", "ms a task", "driver, peak", "same bytes", "spill files left", title=f"{size} of JSON Lines"
    )
    for run in runs:
        table.add_row(
            run.title, f"{run.tasks:,}", f"{run.seconds:.0f}", f"{1e3 * run.seconds / run.tasks:.1f}",
            format_size(run.driver_bytes), "yes" if run.digest == runs[0].digest else "NO", str(len(left)),
        )  # fmt: skip
    Console(width=130).print(table)
    for note in (note for run in runs for note in run.notes if "lost" in note):
        print(note)


@contextmanager
def _cluster(nodes: int) -> Iterator[Any]:
    """A head with one CPU and further nodes, each at a loopback address of its own."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415  # costs seconds

    def node(number: int) -> dict[str, Any]:
        return {"node_ip_address": f"127.0.0.{number + 2}", "num_cpus": 1, "memory": 2**30}

    head = node(0) | {"include_dashboard": False, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(1, nodes):
            _try_again(cluster, node(number))
        yield cluster
    finally:
        import ray  # noqa: PLC0415

        ray.shutdown()
        cluster.shutdown()


def _try_again(cluster: Any, node: dict[str, Any]) -> None:
    for left in reversed(range(_TRIES)):
        try:
            cluster.add_node(**node)
        except Exception as error:  # Ray raises a bare one when a node needs more than its 30 s
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Yield a list that holds the most resident bytes of this process, looked at ten times a second."""
    own, peak, stop = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], own.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    typer.run(main)
