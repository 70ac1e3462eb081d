"""Two Ray nodes with disks of their own, one of which goes in the middle of the second pass, disk and all."""

from __future__ import annotations

import shutil
from contextlib import suppress

import psutil
import pytest

from kexue_train.executor import RayExecutor
from kexue_train.foundation.progress import Silent
from tests.executor.test_executor_ray_nodes import SECOND, cluster, second  # noqa: F401  # fixtures


class RemoveAfter(Silent):
    """Removes a node when the first shard is written, and what lies on its disk."""

    def __init__(self, ray_cluster, node, folder):
        self.cluster, self.node, self.folder, self.notes = ray_cluster, node, folder, []
        self.lost = 0

    def update(self, done, total, unit, **facts):  # noqa: ARG002
        if facts.get("phase") == "write" and done > total / 2 and not self.lost:
            found = list(self.folder.glob(f"*/{SECOND}"))
            self.lost = sum(1 for folder in found for _ in folder.iterdir())
            raylet = psutil.Process(self.node.all_processes["raylet"][0].process.pid)
            family = raylet.children(recursive=True)
            self.cluster.remove_node(self.node, allow_graceful=False)
            for process in family:  # else they would go on for a moment, and miss the files
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family)
            for folder in found:
                shutil.rmtree(folder)

    def note(self, message):
        self.notes.append(message)


@pytest.mark.slow
def test_a_machine_lost_in_mid_shuffle_changes_no_byte(
    tmp_path,
    make_corpus,
    shuffle,
    contents,
    monkeypatch,
    cluster,  # noqa: F811
    second,  # noqa: F811
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 1 << 17)
    for file in range(3):
        make_corpus(tmp_path / "in" / f"{file}.jsonl", [f"{file} {i} " + "word " * (i % 400) for i in range(4000)])
    shuffle(tmp_path / "in", tmp_path / "reference", shards=12)
    progress = RemoveAfter(cluster, second, tmp_path / "spill")
    executor = RayExecutor(cluster.address)
    settings = {"shards": 12, "memory": "1GB", "spill": str(tmp_path / "spill")}
    shuffle(tmp_path / "in", tmp_path / "out", executor=executor, progress=progress, **settings)
    assert progress.lost > 0
    assert any(f"machine {SECOND} was lost" in note for note in progress.notes)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert not [path for path in (tmp_path / "spill").rglob("*") if path.is_file()]
