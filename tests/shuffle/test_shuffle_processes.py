from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from kexue_train.executor import LocalExecutor
from tests.shuffle.shard_texts import iter_texts

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
from kexue_train.executor import LocalExecutor
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
import kexue_train.shuffle.plan as plan
plan._MIN_RANGE_BYTES = 1 << 18
if __name__ == "__main__":
    shuffle_corpus(ShuffleConfig(shards=12), [sys.argv[1]], Path(sys.argv[2]), seed=0, executor=LocalExecutor(1))
"""


@pytest.fixture
def large_corpus(tmp_path, make_corpus):
    """24 MB in 3 files."""
    for file in range(3):
        make_corpus(tmp_path / "in" / f"{file}.jsonl", [f"{file} {i} " + "word " * (i % 400) for i in range(8000)])
    return tmp_path / "in"


def test_two_local_workers_give_the_same_bytes_as_one(tmp_path, large_corpus, shuffle, contents):
    for workers in (1, 2):
        shuffle(large_corpus, tmp_path / str(workers), shards=5, executor=LocalExecutor(workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_ray_gives_the_same_bytes_as_a_local_process(tmp_path, large_corpus, shuffle, contents, local_ray):
    shuffle(large_corpus, tmp_path / "local", shards=5)
    shuffle(large_corpus, tmp_path / "ray", shards=5, executor=local_ray)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_fifty_kills_at_any_moment_lose_nothing(tmp_path, large_corpus, contents):
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(large_corpus)]
    subprocess.run([*command, str(tmp_path / "reference")], check=True)
    delays = random.Random(0)
    kills = finished = 0
    while kills < 50:
        process = subprocess.Popen([*command, str(tmp_path / f"out{finished}")], start_new_session=True)
        try:
            process.wait(timeout=delays.uniform(0.45, 0.9))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            finished += 1
    subprocess.run([*command, str(tmp_path / f"out{finished}")], check=True)
    for number in range(finished + 1):
        assert contents(tmp_path / f"out{number}") == contents(tmp_path / "reference")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_memory_stays_within_the_budget(tmp_path, make_corpus):
    make_corpus(tmp_path / "in.jsonl", (f"{i} " + "word " * 400 for i in range(100_000)))  # 200 MB
    script = SCRIPT.replace("shards=12", "shards=1, memory='300MB'").replace("1 << 18", "8 << 20") + (
        "    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 300 * 10**6
    assert sum(1 for _ in iter_texts(tmp_path / "out")) == 100_000


def test_datasets_opens_the_folder(tmp_path, corpus, shuffle):
    import datasets

    shuffle(corpus, tmp_path / "out", shards=3)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert loaded["text"][:] == list(iter_texts(tmp_path / "out"))
    files = [str(path) for path in sorted((tmp_path / "out").glob("*.arrow"))]
    streamed = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)
    assert [row["text"] for row in streamed] == loaded["text"][:]
